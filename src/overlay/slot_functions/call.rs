//! A call that may be executed here: what is asked of the upstream before, and what it gets instead.

use std::ops::Range;

use walrelay_proto::Lsn;

use crate::overlay::lex::{self, Kind, Statement, Token};
use crate::overlay::rewrite::{Edit, apply};
use crate::overlay::{Relay, SqlContext, literal};
use crate::wire::{PgError, sqlstate};

use super::arguments::{Argument, Call};
use super::{Function, already_exists, span};

/// A text that is one call of a slot function.
#[derive(Clone, PartialEq, Debug)]
pub struct SlotCall {
    function: Function,
    argument: Argument,
    /// The whole text.
    text: Vec<u8>,
    /// The call in it, all that is replaced by its result.
    replaced: Range<usize>,
    form: Form,
    /// The slot's name in it.
    name: Range<usize>,
    /// `pg_catalog` stands in front.
    is_qualified: bool,
    session: SqlContext,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// The item of a SELECT list.
    Item,
    /// `(call).column` there.
    Column(&'static str),
    /// `(call).*` there.
    AllColumns,
    /// The item of a FROM list.
    Table,
    /// The same with an alias, which is also the name of a single column.
    AliasedTable,
}

impl Function {
    /// The names of what it returns.
    fn columns(self) -> &'static [&'static str] {
        match self {
            Function::Create | Function::Copy => &["slot_name", "lsn"],
            Function::Advance => &["slot_name", "end_lsn"],
            Function::Drop => &["pg_drop_replication_slot"],
        }
    }
}

/// No slot can have that name; a call with it does nothing but fail, for want of rights if there are none.
const NOBODY: &str = "no slot, but may this be called?";

impl SlotCall {
    /// The call, if it is all that the statement does.
    pub(super) fn new(
        text: &[u8],
        statement: &Statement,
        call: &Call,
        session: &SqlContext,
    ) -> Option<SlotCall> {
        let (first, last, form) = place(text, &statement.tokens, call)?;
        Some(SlotCall {
            function: call.function,
            argument: call.arguments.clone()?,
            text: text.to_owned(),
            replaced: span(&statement.tokens, first, last),
            form,
            name: call.slot.as_ref()?.span.clone(),
            is_qualified: call.is_qualified,
            session: *session,
        })
    }

    /// What the upstream is asked, in the session, before the call is executed: statements without an effect, of which
    /// the first returns one row for [`SlotCall::act`]. An error is the answer to the call.
    pub fn question(&self) -> Vec<u8> {
        let function = self.function.name();
        let this = "p.proname OPERATOR(pg_catalog.=) '{function}'::pg_catalog.name AND p.pronamespace OPERATOR(pg_catalog.=) 11";
        let this = this.replace("{function}", function);
        // A function of the same name in another schema may be the one that is meant.
        let other = match self.is_qualified {
            true => "false".to_owned(),
            false => format!(
                "EXISTS (SELECT 1 FROM pg_catalog.pg_proc AS p WHERE {})",
                this.replace("pronamespace OPERATOR(pg_catalog.=)", "pronamespace OPERATOR(pg_catalog.<>)")
            ),
        };
        let slot = literal::string(self.argument.makes_or_changes(), &self.session);
        let question = format!(
            "SELECT {other}, (SELECT pg_catalog.bool_and(pg_catalog.has_function_privilege(p.oid, 'EXECUTE')) \
             FROM pg_catalog.pg_proc AS p WHERE {this}), (SELECT r.rolsuper OR r.rolreplication \
             FROM pg_catalog.pg_roles AS r WHERE r.rolname OPERATOR(pg_catalog.=) current_user), \
             EXISTS (SELECT 1 FROM pg_catalog.pg_get_replication_slots() AS s WHERE s.slot_name \
             OPERATOR(pg_catalog.=) {slot}::pg_catalog.name AND s.slot_type OPERATOR(pg_catalog.<>) 'physical');\nEXPLAIN\n"
        );
        [question.as_bytes(), &self.text].concat()
    }

    /// Executes the call if the upstream has nothing against it, and returns the text to be forwarded: the client's with the
    /// result in the place of the call, or one that fails as the call would. `answer` is the row. Waits for the disk.
    pub fn act(&self, answer: &[Option<Vec<u8>>], relay: &mut dyn Relay) -> Vec<u8> {
        let yes = |at: usize| answer.get(at).is_some_and(|value| value.as_deref() == Some(b"t"));
        let [other, may_execute, may_replicate, is_logical] = [0, 1, 2, 3].map(yes);
        if answer.len() != 4 || other {
            return self.fail(&self.other_function());
        }
        if !may_execute || !may_replicate {
            // The upstream says why.
            let name = literal::string(NOBODY, &self.session);
            return apply(&self.text, vec![Edit { span: self.name.clone(), text: name }]);
        }
        let columns = match is_logical {
            true => Err(self.taken()),
            false => self.execute(relay),
        };
        match columns {
            Ok(columns) => apply(&self.text, vec![self.result(&columns)]),
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&self, error: &PgError) -> Vec<u8> {
        literal::raise(error, &self.session).into_bytes()
    }

    fn other_function(&self) -> PgError {
        let refused = self.function.refuse("because there is another function of that name in the database");
        refused.with_hint(format!("Write pg_catalog.{}.", self.function.name()))
    }

    /// The upstream has a logical slot of the name.
    fn taken(&self) -> PgError {
        let name = self.argument.makes_or_changes();
        match self.argument {
            Argument::Create { .. } | Argument::Copy { .. } => already_exists(name),
            Argument::Drop { .. } | Argument::Advance { .. } => {
                let text = format!("replication slot \"{name}\" exists here and, as a logical one, upstream");
                PgError::error(sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE, text).with_hint(
                    "Use DROP_REPLICATION_SLOT: with replication=true it means the one here, with replication=database that of the upstream.",
                )
            }
        }
    }

    /// The columns returned, with their values as SQL expressions.
    fn execute(&self, relay: &mut dyn Relay) -> Result<Vec<(&'static str, String)>, PgError> {
        let name = |name: &str| format!("{}::pg_catalog.name", literal::string(name, &self.session));
        let lsn = |lsn: Option<Lsn>| match lsn {
            Some(lsn) => format!("'{lsn}'::pg_catalog.pg_lsn"),
            None => "NULL::pg_catalog.pg_lsn".to_owned(),
        };
        Ok(match &self.argument {
            Argument::Create { name: slot, reserve, temporary } => {
                let start = relay.create_slot(slot, *reserve, *temporary)?;
                vec![("slot_name", name(slot)), ("lsn", lsn(start.filter(|_| *reserve)))]
            }
            Argument::Drop { name: slot } => {
                relay.drop_slot(slot)?;
                vec![(Function::Drop.name(), "''::pg_catalog.void".to_owned())]
            }
            Argument::Copy { from, to, temporary } => {
                relay.copy_slot(from, to, *temporary)?;
                // PG: copy_replication_slot shows the confirmed_flush_lsn, which a physical slot does not have.
                vec![("slot_name", name(to)), ("lsn", lsn(None))]
            }
            Argument::Advance { name: slot, upto } => {
                let end = relay.advance_slot(slot, upto.clone()?)?;
                vec![("slot_name", name(slot)), ("end_lsn", lsn(Some(end)))]
            }
        })
    }

    /// The outcome in the call's place, with the columns the call would have.
    fn result(&self, columns: &[(&'static str, String)]) -> Edit {
        let name = self.function.name();
        let all = || columns.iter().map(|(name, value)| format!("{value} AS {name}")).collect::<Vec<_>>();
        let text = match self.form {
            Form::Item => match columns {
                [(_, only)] => format!("(SELECT {only} AS {name})"),
                several => {
                    let values: Vec<_> = several.iter().map(|(_, value)| value.as_str()).collect();
                    format!("(SELECT ROW({}) AS {name})", values.join(", "))
                }
            },
            Form::Column(wanted) => {
                let value = columns.iter().find(|(name, _)| *name == wanted);
                let value = value.map_or("NULL", |(_, value)| value);
                format!("(SELECT {value} AS {wanted})")
            }
            Form::AllColumns => {
                let each: Vec<_> = all().iter().map(|column| format!("(SELECT {column})")).collect();
                each.join(", ")
            }
            Form::Table => format!("(SELECT {}) AS {name}", all().join(", ")),
            Form::AliasedTable => format!("(SELECT {})", all().join(", ")),
        };
        Edit { span: self.replaced.clone(), text }
    }
}

/// Where the call stands, if it is all that the statement does: its first and last token and the form. Whether the rest
/// makes sense is asked of the upstream.
fn place(text: &[u8], tokens: &[Token], call: &Call) -> Option<(usize, usize, Form)> {
    let is = |at: usize, word: &str| tokens.get(at).is_some_and(|token| lex::is_word(text, token, word));
    let behind = &tokens[call.last + 1..];
    let is_name = |token: &Token| matches!(token.kind, Kind::Word | Kind::Quoted);
    let label = |behind: &[Token]| match behind {
        [] => true,
        [name] => is_name(name),
        [as_, name] => lex::is_word(text, as_, "as") && is_name(name),
        _ => false,
    };
    if !is(0, "select") {
        return None;
    }
    if call.first == 1 {
        return label(behind).then_some((call.first, call.last, Form::Item));
    }
    if call.first == 2 && tokens[1].kind == Kind::Open {
        let [close, dot, column, rest @ ..] = behind else { return None };
        if close.kind != Kind::Close || dot.kind != Kind::Dot || !label(rest) {
            return None;
        }
        let names = |name: &&&str| lex::is_identifier(text, column, name);
        let form = match call.function.columns().iter().find(names) {
            _ if call.function == Function::Drop => return None,
            Some(name) => Form::Column(name),
            None if &text[column.span.clone()] == b"*" && rest.is_empty() => Form::AllColumns,
            None => return None,
        };
        return Some((1, call.last + 3, form));
    }
    let list = tokens.get(1..call.first - 1)?;
    let selects = |item: &[Token]| match item {
        [one] => {
            &text[one.span.clone()] == b"*"
                || call.function.columns().iter().any(|name| lex::is_identifier(text, one, name))
        }
        _ => false,
    };
    let is_table = is(call.first - 1, "from")
        && list.split(|token| token.kind == Kind::Comma).all(selects)
        && label(behind);
    if !is_table {
        return None;
    }
    match behind {
        [] => Some((call.first, call.last, Form::Table)),
        // The column of a function that returns one value would be called as its alias.
        _ if call.function == Function::Drop => None,
        _ => Some((call.first, call.last, Form::AliasedTable)),
    }
}
