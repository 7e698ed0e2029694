//! Any conversation, with a server that keeps its statements and portals as PostgreSQL does (PostgreSQL: `postgres.c`,
//! `prepare.c`, `portalmem.c`).

use std::collections::{HashMap, VecDeque};

use super::*;

/// What a text does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Text {
    /// It reads a view, so that a statement prepared from it has the rows as a parameter.
    Rows,
    Deallocate(&'static str),
    DeallocateAll,
    Begin,
    End,
    Other,
    /// It fails to parse.
    Wrong,
}

#[derive(Clone, Copy, Debug)]
enum Sent {
    Parse(&'static str, Text),
    Bind(&'static str, &'static str),
    Execute(&'static str),
    Describe(&'static str),
    Close(&'static str),
    Sync,
    Query(Text),
}

/// `true` to let the server answer one message before the next is sent.
type Step = (Sent, bool);

#[derive(Default)]
struct Server {
    statements: HashMap<&'static str, Text>,
    portals: HashMap<&'static str, Text>,
    in_block: bool,
    aborted: bool,
    skipping: bool,
}

type Answered = Result<Vec<(u8, Vec<u8>)>, ()>;

fn one(kind: u8, body: &[u8]) -> Answered {
    Ok(vec![(kind, body.to_vec())])
}

impl Server {
    fn answer(&mut self, sent: Sent) -> Vec<(u8, Vec<u8>)> {
        let ends = matches!(sent, Sent::Sync | Sent::Query(_));
        if self.skipping && !matches!(sent, Sent::Sync) {
            return Vec::new();
        }
        let mut answers = match sent {
            Sent::Parse(name, text) => self.parse(name, text),
            Sent::Bind(portal, statement) => self.bind(portal, statement),
            Sent::Execute(portal) => self.execute(portal),
            Sent::Describe(name) => self.describe(name),
            Sent::Close(name) => {
                self.statements.remove(name);
                one(b'3', b"")
            }
            Sent::Sync => Ok(Vec::new()),
            Sent::Query(text) => self.query(text),
        }
        .unwrap_or_else(|()| self.fail(!ends));
        if ends {
            self.skipping = false;
            if !self.in_block {
                self.portals.clear();
            }
            let status = [b'I', b'T', b'E'][usize::from(self.in_block) + usize::from(self.aborted)];
            answers.push((b'Z', vec![status]));
        }
        answers
    }

    fn fail(&mut self, skips: bool) -> Vec<(u8, Vec<u8>)> {
        self.skipping = skips;
        self.aborted = self.in_block;
        self.portals.clear();
        vec![(b'E', b"\0".to_vec())]
    }

    fn parse(&mut self, name: &'static str, text: Text) -> Answered {
        if name.is_empty() {
            self.statements.remove(name);
        }
        let refused = text == Text::Wrong || self.aborted && text != Text::End;
        if refused || self.statements.contains_key(name) {
            return Err(());
        }
        self.statements.insert(name, text);
        one(b'1', b"")
    }

    fn bind(&mut self, portal: &'static str, statement: &'static str) -> Answered {
        let text = *self.statements.get(statement).ok_or(())?;
        if self.aborted && text != Text::End || !portal.is_empty() && self.portals.contains_key(portal) {
            return Err(());
        }
        self.portals.insert(portal, text);
        one(b'2', b"")
    }

    fn execute(&mut self, portal: &'static str) -> Answered {
        // It runs once.
        let text = *self.portals.get(portal).ok_or(())?;
        self.portals.insert(portal, Text::Wrong);
        self.run(text)
    }

    fn describe(&mut self, name: &'static str) -> Answered {
        let text = *self.statements.get(name).ok_or(())?;
        let types: &[u8] = if text == Text::Rows { b"\0\x01\0\0\0\x19" } else { b"\0\0" };
        Ok(vec![(b't', types.to_vec()), (b'n', Vec::new())])
    }

    fn query(&mut self, text: Text) -> Answered {
        self.statements.remove("");
        self.portals.remove("");
        self.run(text)
    }

    fn run(&mut self, text: Text) -> Answered {
        if self.aborted && text != Text::End {
            return Err(());
        }
        match text {
            Text::Rows | Text::Other => one(b'C', b"SELECT 1\0"),
            Text::Deallocate(name) => {
                self.statements.remove(name).ok_or(())?;
                one(b'C', b"DEALLOCATE\0")
            }
            Text::DeallocateAll => {
                self.statements.retain(|name, _| name.is_empty());
                one(b'C', b"DEALLOCATE ALL\0")
            }
            Text::Begin => {
                self.in_block = true;
                one(b'C', b"BEGIN\0")
            }
            Text::End => {
                (self.in_block, self.aborted) = (false, false);
                one(b'C', b"COMMIT\0")
            }
            Text::Wrong => Err(()),
        }
    }
}

/// A client's text.
fn written(text: Text) -> String {
    match text {
        Text::Deallocate(name) => format!("deallocate \"{name}\""),
        other => format!("{other:?}"),
    }
}

fn send(exchange: &mut Exchange, sent: Sent) {
    match sent {
        Sent::Parse(name, text) => {
            let rows = (text == Text::Rows).then(rows);
            exchange.parse(name.as_bytes(), written(text).as_bytes(), rows);
        }
        Sent::Bind(portal, statement) => match exchange.has_statements() {
            true => exchange.bind(portal.as_bytes(), statement.as_bytes()),
            false => exchange.send(b'B'),
        },
        Sent::Execute(portal) => match exchange.has_deallocations() {
            true => exchange.execute(portal.as_bytes()),
            false => exchange.send(b'E'),
        },
        Sent::Describe(name) => exchange.describe_statement(name.as_bytes()),
        Sent::Close(name) => exchange.close_statement(name.as_bytes()),
        Sent::Sync => exchange.send(b'S'),
        Sent::Query(text) => exchange.query(deallocated(written(text).as_bytes())),
    }
}

const NAMES: [&str; 3] = ["", "a", "b"];
/// With that of a statement in the tests of one order.
const ALL_NAMES: [&str; 4] = ["", "a", "b", "d"];

/// What is known is what the server has, and the client sees no parameter of ours.
fn converse(steps: &[Step]) {
    let (mut exchange, mut server) = (session(), Server::default());
    let mut on_the_way: VecDeque<Sent> = VecDeque::new();
    let mut answer = |exchange: &mut Exchange, sent: Sent| {
        for (kind, body) in server.answer(sent) {
            let mut output = BytesMut::new();
            Filter::default().feed(&message(kind, &body), exchange, &mut output);
            assert!(kind != b't' || output[5..] == *b"\0\0", "{sent:?} in {steps:?}");
        }
        for name in ALL_NAMES {
            let known = match exchange.statements.settled(name.as_bytes()) {
                Some(Kept::Rows(_)) => Some("rows".to_owned()),
                Some(Kept::Deallocates(name)) => Some(String::from_utf8(name.to_vec()).unwrap()),
                None => None,
            };
            let there = match server.statements.get(name) {
                Some(Text::Rows) => Some("rows".to_owned()),
                Some(Text::Deallocate(name)) => Some((*name).to_owned()),
                // Any Query drops the one without a name; nobody can use what is known of it then.
                None if name.is_empty() => continue,
                _ => None,
            };
            assert_eq!(known, there, "\"{name}\" behind {sent:?} in {steps:?}");
        }
    };
    for &(sent, answers) in steps.iter().chain(&[(Sent::Sync, true)]) {
        send(&mut exchange, sent);
        on_the_way.push_back(sent);
        if answers && let Some(first) = on_the_way.pop_front() {
            answer(&mut exchange, first);
        }
    }
    on_the_way.into_iter().for_each(|sent| answer(&mut exchange, sent));
    assert!(exchange.is_quiet(), "{steps:?}");
    for name in ALL_NAMES {
        let (settled, expected) =
            (exchange.statements.settled(name.as_bytes()), exchange.statements.expected(name.as_bytes()));
        assert_eq!(settled, expected, "everything has been answered in {steps:?}");
    }
    let deallocates =
        |name: &&str| matches!(exchange.statements.settled(name.as_bytes()), Some(Kept::Deallocates(_)));
    assert_eq!(exchange.statements.deallocate(), ALL_NAMES.iter().any(deallocates), "{steps:?}");
}

fn step() -> impl Strategy<Value = Step> {
    let name = || proptest::sample::select(&NAMES[..]);
    let text = || {
        prop_oneof![
            3 => Just(Text::Rows),
            3 => name().prop_map(Text::Deallocate),
            1 => Just(Text::DeallocateAll),
            1 => Just(Text::Begin),
            1 => Just(Text::End),
            2 => Just(Text::Other),
            1 => Just(Text::Wrong),
        ]
    };
    let sent = prop_oneof![
        6 => (name(), text()).prop_map(|(name, text)| Sent::Parse(name, text)),
        4 => (name(), name()).prop_map(|(portal, statement)| Sent::Bind(portal, statement)),
        4 => name().prop_map(Sent::Execute),
        2 => name().prop_map(Sent::Describe),
        2 => name().prop_map(Sent::Close),
        4 => Just(Sent::Sync),
        2 => text().prop_map(Sent::Query),
    ];
    (sent, any::<bool>())
}

#[test]
fn orders_that_went_wrong_once() {
    use Sent::{Bind, Close, Execute, Parse, Query, Sync};
    let one = Text::Deallocate("a");
    let two = Text::Deallocate("b");
    let both = [Parse("a", Text::Rows), Parse("b", Text::Rows), Sync];
    for sent in [
        // A Parse that was skipped does not make another of the statement.
        &[Parse("", one), Sync, Execute("x"), Parse("", two), Sync, Bind("", ""), Execute(""), Sync][..],
        // Nor does one that was refused.
        &[Parse("d", one), Sync, Parse("d", two), Sync, Bind("", "d"), Execute(""), Sync],
        // One without a name is gone when the next fails.
        &[Parse("", one), Sync, Parse("", Text::Wrong), Sync, Bind("", ""), Execute(""), Sync],
        // A Close that was skipped closes nothing.
        &[Parse("d", one), Sync, Execute("x"), Close("d"), Sync, Bind("", "d"), Execute(""), Sync],
        // The statement of the rows was to be closed, and was not.
        &[Execute("x"), Close("a"), Sync, Sent::Describe("a"), Sync],
        // What the portal runs does not change with its statement.
        &[Parse("", one), Bind("p", ""), Parse("", two), Execute("p"), Sync],
        &[Parse("d", one), Bind("p", "d"), Close("d"), Parse("d", two), Execute("p"), Sync],
        // A portal ends with its transaction, and the next of the name is another.
        &[Parse("", one), Parse("d", two), Bind("p", ""), Sync, Bind("p", "d"), Execute("p"), Sync],
        // In a block it does not, and the next of the name is refused.
        &[Query(Text::Begin), Parse("", one), Parse("d", two), Bind("p", ""), Sync, Execute("p"), Sync],
        // It deallocates itself.
        &[Parse("d", Text::Deallocate("d")), Bind("", "d"), Execute(""), Bind("", "d"), Execute(""), Sync],
        // It was parsed anew behind the one that is deallocated.
        &[Query(one), Parse("a", Text::Rows), Sync, Query(Text::DeallocateAll), Parse("b", two), Sync],
    ] {
        // Every way for the answers to come; a Flush asks for them and is not answered itself.
        let sent: Vec<_> = both.iter().chain(sent).copied().collect();
        let steps = |answered: &dyn Fn(usize) -> bool| {
            converse(&sent.iter().enumerate().map(|(at, sent)| (*sent, answered(at))).collect::<Vec<_>>());
        };
        steps(&|_| true);
        steps(&|_| false);
        (0..sent.len()).for_each(|late| {
            steps(&|at| at < late);
            steps(&|at| at >= late);
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_is_known_is_what_the_server_has(steps in proptest::collection::vec(step(), 0..40)) {
        converse(&steps);
    }
}
