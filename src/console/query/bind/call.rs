//! Calls: functions, aggregates, and what PostgreSQL's grammar has as functions.

use std::cmp::Ordering;

use super::*;
use crate::console::query::aggregate::{self, AggregateKind};
use crate::console::query::ast::{Call, TypeName};
use crate::console::query::functions;
use crate::console::query::node::Side;
use crate::console::query::unsupported;

/// Where the arguments of an aggregate are.
const INNER: &str = "aggregate function calls";

impl Binder<'_> {
    pub(super) fn call(&mut self, call: &Call, place: Place<'_>) -> Result<Typed> {
        if aggregate::is_aggregate(&call.name) {
            return self.aggregate(call, place);
        }
        if call.star || call.distinct || !call.order.is_empty() || call.filter.is_some() {
            let text = format!("{} is not an aggregate function", call.name);
            return Err(PgError::error(sqlstate::WRONG_OBJECT_TYPE, text));
        }
        let mut arguments = Vec::with_capacity(call.arguments.len());
        for argument in &call.arguments {
            arguments.push(self.expr(argument, place)?);
        }
        self.call_of(&call.name, arguments)
    }

    #[inline(never)]
    fn call_of(&mut self, name: &str, mut arguments: Vec<Typed>) -> Result<Typed> {
        match (name, arguments.len()) {
            ("coalesce", 1..) => {
                let (values, kind) = self.alike("COALESCE", arguments)?;
                return Ok(Typed { node: Node::Coalesce(values), kind });
            }
            ("greatest" | "least", 1..) => {
                let wanted = if name == "greatest" { Ordering::Greater } else { Ordering::Less };
                let (values, kind) = self.alike(&name.to_ascii_uppercase(), arguments)?;
                sortable(kind)?;
                return Ok(Typed { node: Node::Extreme { wanted, values }, kind });
            }
            ("nullif", 2) => return self.null_if(arguments),
            ("concat", _) => return self.concat(None, arguments),
            ("concat_ws", 1..) => {
                let separator = arguments.remove(0);
                return self.concat(Some(separator), arguments);
            }
            _ => {}
        }
        let kinds: Vec<_> = arguments.iter().map(|argument| argument.kind).collect();
        if let Some(function) = functions::find(name, &kinds, false) {
            return self.applied(function, arguments);
        }
        // The name of a type may be called.
        let to = TypeName { name: name.to_owned(), modifiers: Vec::new(), is_array: false };
        if let ([kind], Some(to)) = (kinds.as_slice(), Type::named(&to))
            && to.column().oid() != 0
            && value::can_cast(*kind, to)
            && let Some(value) = arguments.pop()
        {
            return self.cast_to(value, to, &[]);
        }
        let shown: Vec<_> = kinds.iter().map(|kind| kind.shown()).collect();
        let text = format!("function {name}({}) does not exist", shown.join(", "));
        let hint = match functions::is_known(name) {
            true => {
                "No function matches the given name and argument types. You might need to add explicit type casts."
            }
            false => "The database \"walrelay\" has a part of PostgreSQL's functions.",
        };
        Err(PgError::error(sqlstate::UNDEFINED_FUNCTION, text).with_hint(hint))
    }

    fn null_if(&mut self, mut arguments: Vec<Typed>) -> Result<Typed> {
        let (Some(other), Some(value)) = (arguments.pop(), arguments.pop()) else {
            return Err(unsupported("NULLIF of anything but two values"));
        };
        let compared = value.kind.compared(other.kind, true).ok_or_else(|| {
            let text =
                format!("NULLIF types {} and {} cannot be matched", value.kind.shown(), other.kind.shown());
            PgError::error(sqlstate::DATATYPE_MISMATCH, text)
        })?;
        // PG: what the operator takes; a name is compared with a text as it is.
        let kind = if value.kind == Type::Name { Type::Name } else { compared };
        let value = Box::new(self.coerce(value, kind)?);
        let other = Side { kind: compared, node: Box::new(self.coerce(other, compared)?) };
        Ok(Typed { node: Node::NullIf { value, from: kind, other }, kind })
    }

    fn concat(&mut self, separator: Option<Typed>, arguments: Vec<Typed>) -> Result<Typed> {
        let separator = match separator {
            Some(separator) => Some(Box::new(self.as_text(separator)?)),
            None => None,
        };
        let parts = arguments.into_iter().map(|argument| self.as_text(argument)).collect::<Result<_>>()?;
        Ok(Typed { node: Node::Concat { separator, parts }, kind: Type::Text })
    }

    /// As an output function writes it, which for a boolean is not how a cast does.
    fn as_text(&self, value: Typed) -> Result<Node> {
        let kind = value.kind;
        let text = self.cast_to(value, Type::Text, &[])?.node;
        if kind != Type::Bool {
            return Ok(text);
        }
        let one = Node::Constant(Value::Int(1));
        let function = functions::find("left", &[Type::Text, Type::Int4], false);
        Ok(function.map_or(text.clone(), |function| Node::Call { function, arguments: vec![text, one] }))
    }

    fn aggregate(&mut self, call: &Call, place: Place<'_>) -> Result<Typed> {
        let Some(aggregates) = place.aggregates else {
            let text = match place.clause {
                INNER => "aggregate function calls cannot be nested".to_owned(),
                clause => format!("aggregate functions are not allowed in {clause}"),
            };
            return Err(PgError::error(sqlstate::GROUPING_ERROR, text));
        };
        if !aggregate::is_known(&call.name) {
            return Err(unsupported(&format!("the aggregate {}()", call.name)));
        }
        let inner = Place::plain(place.scope, INNER);
        let mut arguments = Vec::new();
        for argument in &call.arguments {
            let argument = self.expr(argument, inner)?;
            arguments.push(self.settled(argument)?);
        }
        let filter = match &call.filter {
            Some(filter) => Some(self.condition(filter, Place { clause: "FILTER", ..inner })?),
            None => None,
        };
        let mut order = Vec::new();
        for sort in &call.order {
            let key = self.expr(&sort.value, inner)?;
            sortable(key.kind)?;
            order.push((key.node, sort.descending, sort.nulls_first));
        }
        let (kind, arguments, returns) = self.aggregate_of(call, arguments)?;
        let made = Aggregate { kind, arguments, distinct: call.distinct, filter, order };
        let mut known = aggregates.borrow_mut();
        let number = known.iter().position(|other| *other == made).unwrap_or(known.len());
        if number == known.len() {
            known.push(made);
        }
        Ok(Typed { node: Node::Aggregate(number), kind: returns })
    }

    fn aggregate_of(
        &mut self,
        call: &Call,
        mut arguments: Vec<Typed>,
    ) -> Result<(AggregateKind, Vec<Node>, Type)> {
        if call.star {
            return match call.name.as_str() {
                "count" => Ok((AggregateKind::Rows, Vec::new(), Type::Int8)),
                _ => Err(no_aggregate(call, "*")),
            };
        }
        let shown: Vec<_> = arguments.iter().map(|argument| argument.kind.shown()).collect();
        let shown = shown.join(", ");
        let wanted = if call.name == "string_agg" { 2 } else { 1 };
        if arguments.len() != wanted {
            return Err(no_aggregate(call, &shown));
        }
        let separator = if wanted == 2 { arguments.pop() } else { None };
        let value = arguments.remove(0);
        let found = AggregateKind::named(&call.name, value.kind).ok_or_else(|| no_aggregate(call, &shown))?;
        let (kind, taken_as, returns) = found;
        let mut nodes = vec![self.coerce(value, taken_as)?];
        if let Some(separator) = separator {
            nodes.push(self.coerce(separator, Type::Text)?);
        }
        Ok((kind, nodes, returns))
    }
}

fn no_aggregate(call: &Call, arguments: &str) -> PgError {
    let text = format!("function {}({arguments}) does not exist", call.name);
    PgError::error(sqlstate::UNDEFINED_FUNCTION, text).with_hint(
        "No function matches the given name and argument types. You might need to add explicit type casts.",
    )
}
