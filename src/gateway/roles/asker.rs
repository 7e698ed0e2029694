//! Asks the upstream about roles, in SQL, through a connection of the relay's own role.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{ANSWER_LIMIT, Attributes, Known};
use crate::conninfo::{ConnInfo, HostSpec};
use crate::pg::{QueryError, QueryResult, UpstreamConnection, connect};
use crate::upstream::Followed;

/// Anybody may ask this. Of memberships all count, whatever their options, and a superuser has none by that (PostgreSQL:
/// `is_member_of_role_nosuper`). NULL in their place says that they are more than 256 KB of names, thousands: neither the
/// answer nor the file they are kept in grows without end.
const ATTRIBUTES_QUERY: &str = "SELECT rolsuper, rolreplication, rolcanlogin, \
     pg_catalog.pg_has_role(oid, 'pg_monitor', 'USAGE'), \
     (WITH RECURSIVE held (id) AS (SELECT r.oid UNION SELECT m.roleid FROM pg_catalog.pg_auth_members m \
     JOIN held ON m.member = held.id), listed (names) AS (SELECT pg_catalog.json_agg(g.rolname)::pg_catalog.text \
     FROM pg_catalog.pg_roles g JOIN held ON g.oid = held.id) \
     SELECT CASE WHEN pg_catalog.octet_length(names) <= 262144 THEN names END FROM listed) \
     FROM pg_catalog.pg_roles r WHERE rolname = $1";

/// No new attempt that soon after the upstream could not be asked.
const PAUSE: Duration = Duration::from_secs(5);
/// Bytes that an answer may have: the most that memberships may, in another encoding too, and as much again.
const MOST_ANSWER: usize = 1 << 20;
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// What is known of each role now; `None` for one that does not exist.
pub(super) type Answers = Vec<(String, Option<Known>)>;

/// Who answers questions about roles: the upstream, or a test's script.
pub(super) trait Answering: Send {
    /// Asks for these roles, all at once. A role that is missing in the result could not be asked for. Dropped half-way,
    /// the answer is given up, and with it the connection.
    fn ask(&mut self, names: &[String]) -> impl Future<Output = Answers> + Send;
    /// An answer was given up.
    fn give_up(&mut self, names: &[String]);
    /// Nobody wants to know anything at the moment.
    fn rest(&mut self) -> impl Future<Output = ()> + Send;
    /// How long an answer takes, connecting included, as it did last.
    fn usual(&self) -> Duration;
}

/// The connection to ask through, kept while it is needed.
pub(super) struct Asker {
    info: ConnInfo,
    auth_query: Option<String>,
    followed: Followed,
    connection: Option<(HostSpec, UpstreamConnection)>,
    failed: Option<Instant>,
    usual: Duration,
    /// Why it failed last; told once.
    told: Option<String>,
}

impl Answering for Asker {
    async fn ask(&mut self, names: &[String]) -> Answers {
        let began = Instant::now();
        // Out of its place while in use: an answer that was not waited for must not be taken for the next one.
        let was_idle = self.connection.is_some();
        let Some((mut host, mut connection)) = self.connect().await else { return Answers::new() };
        let mut results = connection.query_each(&self.commands(names), MOST_ANSWER).await;
        // While nobody used it the server may have ended it, by a restart for one. A new one may do; that is no news.
        if was_idle && results.is_err() {
            let Some(fresh) = self.connect().await else { return Answers::new() };
            (host, connection) = fresh;
            results = connection.query_each(&self.commands(names), MOST_ANSWER).await;
        } else if !was_idle {
            self.usual = began.elapsed();
        }
        match results {
            Ok(results) => {
                self.connection = Some((host, connection));
                self.read(names, results)
            }
            // What spoils the connection may be one name's answer. The others are not to go without theirs for it.
            Err(_) if names.len() > 1 => self.ask_singly(names).await,
            Err(error) => {
                self.tell(unanswered(&names[0], &error));
                Answers::new()
            }
        }
    }

    fn give_up(&mut self, names: &[String]) {
        (self.connection, self.failed) = (None, Some(Instant::now()));
        let limit = ANSWER_LIMIT.as_secs();
        self.tell(format!("could not ask the upstream for role \"{}\": no answer in {limit} s", names[0]));
    }

    async fn rest(&mut self) {
        if let Some((_, connection)) = self.connection.take() {
            let _ = timeout(GOODBYE, connection.close()).await;
        }
    }

    fn usual(&self) -> Duration {
        self.usual
    }
}

impl Asker {
    /// `followed` tells which server to ask.
    pub(super) fn new(info: ConnInfo, auth_query: Option<String>, followed: Followed) -> Asker {
        Asker {
            info,
            auth_query,
            followed,
            connection: None,
            failed: None,
            usual: Duration::ZERO,
            told: None,
        }
    }

    async fn connect(&mut self) -> Option<(HostSpec, UpstreamConnection)> {
        let host = self.followed.host()?;
        if let Some((known, connection)) = self.connection.take()
            && known == host
        {
            return Some((known, connection));
        }
        if self.failed.is_some_and(|at| at.elapsed() < PAUSE) {
            return None;
        }
        match connect(&self.info, &host, Instant::now() + ANSWER_LIMIT).await {
            Ok(connection) => {
                self.failed = None;
                Some((host, connection))
            }
            Err(error) => {
                self.failed = Some(Instant::now());
                self.tell(format!("could not connect to the upstream's database for roles: {error}"));
                None
            }
        }
    }

    /// Until there is no server to ask.
    async fn ask_singly(&mut self, names: &[String]) -> Answers {
        let mut answers = Answers::new();
        for name in names {
            let Some((host, mut connection)) = self.connect().await else { break };
            let name = std::slice::from_ref(name);
            match connection.query_each(&self.commands(name), MOST_ANSWER).await {
                Ok(results) => {
                    self.connection = Some((host, connection));
                    answers.extend(self.read(name, results));
                }
                Err(error) => self.tell(unanswered(&name[0], &error)),
            }
        }
        answers
    }

    /// For each name the same commands, one or two.
    fn commands(&self, names: &[String]) -> Vec<String> {
        let queries = || std::iter::once(ATTRIBUTES_QUERY).chain(self.auth_query.as_deref());
        names.iter().flat_map(|name| queries().map(move |query| with_name(query, name))).collect()
    }

    fn read(
        &mut self,
        names: &[String],
        results: Vec<Result<QueryResult, crate::pg::ServerError>>,
    ) -> Answers {
        let mut results = results.into_iter().map(|result| result.map_err(QueryError::Server).map(first_row));
        let (mut answers, mut failed) = (Answers::new(), false);
        for name in names {
            let attributes = results.next();
            let secret = self.auth_query.is_some().then(|| results.next()).flatten();
            match known(attributes, secret) {
                Ok(known) => {
                    if lacks_memberships(known.as_ref()) {
                        failed = true;
                        self.tell(format!(
                            "the upstream does not say in 256 KB which roles \"{name}\" belongs to: lines with +role or samerole refuse it, \
                             make it a member of fewer"
                        ));
                    }
                    answers.push((name.clone(), known));
                }
                Err(error) => {
                    failed = true;
                    self.tell(unanswered(name, &error));
                }
            }
        }
        if !failed {
            self.told = None;
        }
        answers
    }

    fn tell(&mut self, text: String) {
        if self.told.as_deref() != Some(&text) {
            tracing::warn!("{text}");
            self.told = Some(text);
        }
    }
}

fn unanswered(name: &str, error: &QueryError) -> String {
    format!("could not ask the upstream for role \"{name}\", what was known of it stays: {error}")
}

/// Each role belongs to itself at least.
fn lacks_memberships(known: Option<&Known>) -> bool {
    known.is_some_and(|known| known.attributes.is_some() && known.member_of.is_none())
}

type Row = Option<Vec<Option<String>>>;

fn known(
    attributes: Option<Result<Row, QueryError>>,
    secret: Option<Result<Row, QueryError>>,
) -> Result<Option<Known>, QueryError> {
    let row = attributes.transpose()?.flatten();
    let flag = |at: usize| row.as_ref().and_then(|row| row.get(at)?.as_deref()).map(|text| text == "t");
    let attributes = (|| {
        Some(Attributes {
            superuser: flag(0)?,
            replication: flag(1)?,
            can_login: flag(2)?,
            monitor: flag(3).unwrap_or(false),
        })
    })();
    let member_of = row.as_ref().and_then(|row| serde_json::from_str(row.get(4)?.as_deref()?).ok());
    let secret = secret.transpose()?.flatten().and_then(|row| row.into_iter().nth(1)?);
    Ok((attributes.is_some() || secret.is_some()).then_some(Known { secret, attributes, member_of }))
}

fn first_row(result: QueryResult) -> Row {
    let text = |value: bytes::Bytes| String::from_utf8_lossy(&value).into_owned();
    result.rows.into_iter().next().map(|row| row.into_iter().map(|value| value.map(text)).collect())
}

/// The query with the name in the place of `$1`.
fn with_name(query: &str, name: &str) -> String {
    // Good whatever standard_conforming_strings is. Names have no NUL: they come from start-up messages.
    let literal = format!("E'{}'", name.replace('\\', "\\\\").replace('\'', "''"));
    let mut text = String::new();
    let mut rest = query;
    while let Some((before, after)) = rest.split_once("$1") {
        let longer = after.starts_with(|c: char| c.is_ascii_digit());
        text.push_str(before);
        text.push_str(if longer { "$1" } else { &literal });
        rest = after;
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::conninfo::Environment;
    use crate::upstream::Following;

    #[test]
    fn names_are_quoted() {
        assert_eq!(with_name("SELECT f($1), $1, $12", "a"), "SELECT f(E'a'), E'a', $12");
        assert_eq!(with_name("f($1)", r"o'b\"), r"f(E'o''b\\')");
    }

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[kind][..], &len, body].concat()
    }

    /// A result with one row, or none, and ReadyForQuery.
    fn result(row: Option<&[&str]>) -> Vec<u8> {
        let width = row.map_or(0, <[_]>::len);
        let count = u16::try_from(width).unwrap().to_be_bytes();
        let columns = [&b"c\0"[..], &[0; 18]].concat().repeat(width);
        let mut answer = message(b'T', &[&count[..], &columns].concat());
        if let Some(row) = row {
            let value =
                |text: &&str| [&u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat();
            let values: Vec<u8> = row.iter().flat_map(value).collect();
            answer.extend(message(b'D', &[&count[..], &values].concat()));
        }
        [answer, message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat()
    }

    struct Server {
        listener: TcpListener,
        stream: Option<TcpStream>,
    }

    impl Server {
        async fn accept(&mut self) {
            let (mut stream, _) = self.listener.accept().await.unwrap();
            let len = stream.read_u32().await.unwrap();
            stream.read_exact(&mut vec![0; len as usize - 4]).await.unwrap();
            let welcome = [message(b'R', &[0; 4]), message(b'Z', b"I")].concat();
            stream.write_all(&welcome).await.unwrap();
            self.stream = Some(stream);
        }

        /// Reads as many queries, before it answers.
        async fn answer(&mut self, queries: usize, answers: &[Vec<u8>]) -> Vec<String> {
            let texts = self.read(queries).await;
            assert!(self.send(answers).await, "gone");
            texts
        }

        /// Whether all of it was taken.
        async fn send(&mut self, answers: &[Vec<u8>]) -> bool {
            self.stream.as_mut().unwrap().write_all(&answers.concat()).await.is_ok()
        }

        async fn read(&mut self, queries: usize) -> Vec<String> {
            let stream = self.stream.as_mut().unwrap();
            let mut texts = Vec::new();
            for _ in 0..queries {
                assert_eq!(stream.read_u8().await.unwrap(), b'Q');
                let mut text = vec![0; stream.read_u32().await.unwrap() as usize - 4];
                stream.read_exact(&mut text).await.unwrap();
                texts.push(String::from_utf8(text).unwrap());
            }
            texts
        }
    }

    /// Somebody who asks a server at this place.
    fn asker_of(place: &str, query: Option<&str>) -> Asker {
        let text = format!("host=127.0.0.1 {place} user=u sslmode=disable");
        let info = ConnInfo::parse(&text, &Environment::of_user("u")).unwrap();
        let (following, host) = Following::channel();
        following.show(Some(info.hosts[0].clone()));
        Asker::new(info, query.map(str::to_owned), host)
    }

    /// A scripted server, and who asks it.
    async fn asking(query: Option<&str>) -> (Server, Asker) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let asker = asker_of(&format!("port={}", listener.local_addr().unwrap().port()), query);
        (Server { listener, stream: None }, asker)
    }

    #[tokio::test]
    async fn all_questions_are_one_round_trip_and_an_error_is_one_names() {
        let (mut server, mut asker) = asking(Some("SELECT secret($1)")).await;
        let names = ["a".to_owned(), "b".to_owned()];
        let attributes = Attributes { superuser: false, replication: true, can_login: true, monitor: false };
        let member_of = Some(vec!["a".to_owned(), "staff \"x\"".to_owned()]);
        let known = Known { secret: Some("s".to_owned()), attributes: Some(attributes), member_of };
        let yes = [result(Some(&["f", "t", "t", "f", r#"["a", "staff \"x\""]"#])), result(Some(&["a", "s"]))]
            .concat();
        let no = [result(None), result(None)].concat();

        let script = async {
            server.accept().await;
            server.answer(4, &[yes.clone(), no.clone()]).await
        };
        let (answers, queries) = tokio::join!(asker.ask(&names), script);
        assert_eq!(answers, [("a".to_owned(), Some(known.clone())), ("b".to_owned(), None)]);
        assert!(queries[3].starts_with("SELECT secret(E'b')"), "{queries:?}");

        // A server that was restarted meanwhile is no news.
        server.stream = None;
        let script = async {
            server.accept().await;
            server.answer(2, std::slice::from_ref(&yes)).await
        };
        let (answers, _) = tokio::join!(asker.ask(&names[..1]), script);
        assert_eq!(answers, [("a".to_owned(), Some(known.clone()))]);
        assert_eq!(asker.told, None);

        let error = message(b'E', b"SERROR\0VERROR\0C42501\0Mno\0\0");
        let refused = [result(None), error, message(b'Z', b"I")].concat();
        let answered = [refused, yes];
        let (answers, _) = tokio::join!(asker.ask(&names), server.answer(4, &answered));
        assert_eq!(answers, [("b".to_owned(), Some(known))]);
        assert!(
            asker
                .told
                .as_deref()
                .is_some_and(|text| text.contains("role \"a\", what was known of it stays: ERROR: no"))
        );
    }

    #[tokio::test]
    async fn an_answer_without_end_is_one_names() {
        let (mut server, mut asker) = asking(None).await;
        let script = tokio::spawn(async move {
            let endless = || result(Some(&["f", "t", "t", "f", &"x".repeat(MOST_ANSWER)]));
            let row = |members| result(Some(&["f", "t", "t", "f", members]));
            server.accept().await;
            server.read(3).await;
            server.send(&[row(r#"["a"]"#), endless()]).await;
            // One by one, with a new connection after each that was given up.
            server.accept().await;
            server.answer(1, &[row(r#"["a"]"#)]).await;
            server.read(1).await;
            server.send(&[endless()]).await;
            server.accept().await;
            server.answer(1, &[row("")]).await;
        });
        let names = ["a", "endless", "c"].map(str::to_owned);
        let answers = asker.ask(&names).await;
        let members: Vec<_> = answers
            .into_iter()
            .map(|(name, known)| (name, known.and_then(|known| known.member_of)))
            .collect();
        assert_eq!(members, [("a".to_owned(), Some(vec!["a".to_owned()])), ("c".to_owned(), None)]);
        let told = asker.told.unwrap_or_default();
        assert!(told.contains("which roles \"c\" belongs to"), "{told}");
        script.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_upstream_that_gave_no_answer_is_not_asked_again_at_once() {
        let mut asker = asker_of("port=1", None);
        let names = ["a".to_owned()];
        asker.give_up(&names);
        assert_eq!(asker.ask(&names).await, []);
        assert!(
            asker.told.as_deref().is_some_and(|text| text.ends_with("no answer in 5 s")),
            "not even tried"
        );
        tokio::time::advance(PAUSE).await;
        assert_eq!(asker.ask(&names).await, []);
        assert!(asker.told.as_deref().is_some_and(|text| text.contains("could not connect")));
    }
}
