//! What an administrator tells the relay to do, in its own database, in the manner of PgBouncer.
//!
//! ```text
//! RELOAD                       DISCONNECT pid            PAUSE target
//! SHUTDOWN [NOW]               DROP SLOT name            RESUME target
//! RESTART                      DISMISS FAILOVERS | CONFLICTS | GAPS
//! ```
//!
//! A name is an identifier or a string. They run outside of transaction blocks only: nothing takes them back.

use crate::overlay::{self, Kind, Token};
use crate::wire::{PgError, sqlstate};

use super::transaction::Transaction;

/// Something to be done; whether the role may is for whoever does it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Order {
    /// Read the configuration again, as after SIGHUP.
    Reload,
    /// End the connection of the consumer with this PID.
    Disconnect(u32),
    /// Drop a replication slot of the relay's.
    DropSlot(String),
    /// Begin nothing more for this archive target.
    Pause(String),
    /// Go on with it.
    Resume(String),
    /// What does not end by itself was looked at, and is no trouble any more.
    Dismiss(Dismissal),
    /// Have the binary that is installed take over, as after SIGUSR2.
    Restart,
    /// Stop the relay, as after SIGTERM; `now`: as after SIGQUIT.
    Shutdown {
        /// Whether consumers and the archive are not waited for.
        now: bool,
    },
}

/// What somebody may say to have looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dismissal {
    /// Promotions that left acknowledged WAL behind.
    Failovers,
    /// Somebody else's files in archive targets.
    Conflicts,
    /// WAL that archive targets will never get.
    Gaps,
}

impl Dismissal {
    const ALL: [Dismissal; 3] = [Dismissal::Failovers, Dismissal::Conflicts, Dismissal::Gaps];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Dismissal::Failovers => "failovers",
            Dismissal::Conflicts => "conflicts",
            Dismissal::Gaps => "gaps",
        }
    }
}

impl Order {
    /// `CommandComplete`
    pub fn tag(&self) -> &'static str {
        match self {
            Order::Reload => "RELOAD",
            Order::Disconnect(_) => "DISCONNECT",
            Order::DropSlot(_) => "DROP SLOT",
            Order::Pause(_) => "PAUSE",
            Order::Resume(_) => "RESUME",
            Order::Dismiss(_) => "DISMISS",
            Order::Restart => "RESTART",
            Order::Shutdown { .. } => "SHUTDOWN",
        }
    }

    /// The order that a statement is; `None` for other statements.
    ///
    /// # Errors
    /// It begins like one and does not go on like one, or stands in a transaction block.
    pub(super) fn of(
        text: &[u8],
        tokens: &[Token],
        transaction: &Transaction,
    ) -> Result<Option<Order>, PgError> {
        let is = |at: usize, word| tokens.get(at).is_some_and(|token| overlay::is_word(text, token, word));
        let Some(usage) =
            USAGES.iter().find(|usage| usage.words.iter().zip(0..).all(|(word, at)| is(at, word)))
        else {
            return Ok(None);
        };
        let order = match &tokens[usage.words.len()..] {
            [] => usage.made_of(None),
            [one] => usage.made_of(Some(Argument { text, token: one })),
            _ => None,
        };
        let order = order.ok_or_else(|| usage.wrong())?;
        transaction.must_be_idle(order.tag())?;
        Ok(Some(order))
    }
}

/// How an order is written.
struct Usage {
    words: &'static [&'static str],
    whole: &'static str,
    about: &'static str,
    make: fn(Option<Argument<'_>>) -> Option<Order>,
}

const USAGES: [Usage; 8] = [
    Usage {
        words: &["reload"],
        whole: "RELOAD",
        about: "Read the configuration file and those it names again",
        make: |argument| argument.is_none().then_some(Order::Reload),
    },
    Usage {
        words: &["disconnect"],
        whole: "DISCONNECT pid",
        about: "End a consumer's connection",
        make: |argument| Some(Order::Disconnect(argument?.number()?)),
    },
    Usage {
        words: &["drop", "slot"],
        whole: "DROP SLOT name",
        about: "Drop a replication slot, and let go of its WAL",
        make: |argument| Some(Order::DropSlot(argument?.name()?)),
    },
    Usage {
        words: &["pause"],
        whole: "PAUSE target",
        about: "Begin nothing more for an archive target",
        make: |argument| Some(Order::Pause(argument?.name()?)),
    },
    Usage {
        words: &["resume"],
        whole: "RESUME target",
        about: "Go on with it",
        make: |argument| Some(Order::Resume(argument?.name()?)),
    },
    Usage {
        words: &["dismiss"],
        whole: "DISMISS FAILOVERS | CONFLICTS | GAPS",
        about: "Say that these troubles were looked at, which do not end by themselves",
        make: |argument| {
            let word = argument?;
            Dismissal::ALL.into_iter().find(|what| word.is(what.as_str())).map(Order::Dismiss)
        },
    },
    Usage {
        words: &["restart"],
        whole: "RESTART",
        about: "Have the binary that is installed now take over, without refusing a client",
        make: |argument| argument.is_none().then_some(Order::Restart),
    },
    Usage {
        words: &["shutdown"],
        whole: "SHUTDOWN [NOW]",
        about: "Stop the relay; now: without waiting for consumers and the archive",
        make: |argument| match argument {
            None => Some(Order::Shutdown { now: false }),
            Some(word) => word.is("now").then_some(Order::Shutdown { now: true }),
        },
    },
];

/// Each as it is written, and what it does.
pub(super) fn usages() -> impl Iterator<Item = (&'static str, &'static str)> {
    USAGES.iter().map(|usage| (usage.whole, usage.about))
}

impl Usage {
    fn made_of(&self, argument: Option<Argument<'_>>) -> Option<Order> {
        (self.make)(argument)
    }

    fn wrong(&self) -> PgError {
        PgError::error(sqlstate::SYNTAX_ERROR, format!("the command is written {}", self.whole))
    }
}

/// What stands behind the words.
struct Argument<'a> {
    text: &'a [u8],
    token: &'a Token,
}

impl Argument<'_> {
    fn is(&self, word: &str) -> bool {
        overlay::is_word(self.text, self.token, word)
    }

    fn name(&self) -> Option<String> {
        let name = overlay::identifier(self.text, self.token);
        name.or_else(|| overlay::string_value(self.text, self.token))
    }

    fn number(&self) -> Option<u32> {
        let written = std::str::from_utf8(&self.text[self.token.span.clone()]).ok()?;
        (self.token.kind == Kind::Number).then(|| written.parse().ok())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(text: &str) -> Result<Option<Order>, String> {
        let statements = overlay::split(text.as_bytes(), true);
        Order::of(text.as_bytes(), &statements[0].tokens, &Transaction::default())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn orders_are_read_as_they_are_typed() {
        let name = |name: &str| name.to_owned();
        for (text, wanted) in [
            ("reload", Order::Reload),
            ("Disconnect 17;", Order::Disconnect(17)),
            ("drop slot standby_1", Order::DropSlot(name("standby_1"))),
            ("DROP SLOT 's'", Order::DropSlot(name("s"))),
            ("pause \"off-site\"", Order::Pause(name("off-site"))),
            ("resume 'off-site'", Order::Resume(name("off-site"))),
            ("dismiss Gaps", Order::Dismiss(Dismissal::Gaps)),
            ("DISMISS FAILOVERS", Order::Dismiss(Dismissal::Failovers)),
            ("Restart", Order::Restart),
            ("shutdown", Order::Shutdown { now: false }),
            ("shutdown /* at once */ now", Order::Shutdown { now: true }),
        ] {
            assert_eq!(order(text), Ok(Some(wanted)), "{text}");
        }
        for text in ["select 1", "drop table slot", "show reload", "'reload'"] {
            assert_eq!(order(text), Ok(None), "{text}");
        }
    }

    #[test]
    fn what_is_not_written_like_that_is_said() {
        for text in [
            "reload all",
            "disconnect",
            "disconnect me",
            "disconnect -1",
            "drop slot",
            "drop slot a b",
            "pause",
            "resume 1",
            "shutdown later",
            "restart now",
            "dismiss",
            "dismiss all",
            "disconnect 99999999999",
        ] {
            let said = order(text).unwrap_err();
            assert!(said.contains("the command is written"), "{text}: {said}");
        }
    }
}
