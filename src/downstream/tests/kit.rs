//! A relay's lower half with a few records in its store, and a client that speaks bytes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{
    Lsn, PgTimestamp, SegSize, ServerMessage, StandbyStatusUpdate, SystemId, TimelineHistory, TimelineId,
    WalIdentity,
};

use crate::archive::{Recall, Source};
use crate::auth::hba::{Hba, Idents};
use crate::auth::users::Users;
use crate::conninfo::{ConnInfo, Environment};
use crate::descriptors::Descriptors;
use crate::downstream::{
    Access, BoundAddr, Doorkeeper, Downstream, DownstreamConfig, Limits, ListenAddr, Registry, ServeError,
    SharedAccess,
};
use crate::gateway::{Gateway, GatewayConfig};
use crate::store::{Background, Identity, Store, StoreConfig, UpstreamParameters, WalWrite, Writer};
use crate::upstream::Following;
use crate::wire::{ServerTls, TlsFiles};

pub(crate) const SYSTEM_ID: u64 = 7_123_456_789_012_345_678;
pub(crate) const SEG: u64 = 1 << 20;
pub(crate) const START: Lsn = Lsn::new(3 * SEG);
const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct Options {
    pub(crate) version: &'static str,
    pub(crate) hba: &'static str,
    pub(crate) users: &'static str,
    /// What `roles.toml` says.
    pub(crate) roles: &'static str,
    pub(crate) max_wal_senders: usize,
    pub(crate) max_connections: usize,
    pub(crate) max_user_connections: usize,
    pub(crate) max_failed_logins: u32,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) authentication_timeout: Duration,
    pub(crate) with_wal: bool,
    pub(crate) shutdown_timeout: Duration,
    /// Copies of WAL elsewhere.
    pub(crate) sources: Vec<Arc<dyn Source>>,
    pub(crate) wal_keep_size: u64,
    pub(crate) max_slot_wal_keep_size: Option<u64>,
    pub(crate) descriptors: Descriptors,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            version: "17.10",
            hba: "host all,replication all all trust\nlocal all,replication all trust",
            users: "",
            roles: "",
            max_wal_senders: 10,
            max_connections: 20,
            max_user_connections: 0,
            max_failed_logins: 100,
            tls: None,
            authentication_timeout: DEADLINE,
            with_wal: true,
            shutdown_timeout: DEADLINE,
            sources: Vec::new(),
            wal_keep_size: 1 << 30,
            max_slot_wal_keep_size: None,
            descriptors: Descriptors::new(1 << 20, 64),
        }
    }
}

pub(crate) struct Relay {
    pub(crate) address: std::net::SocketAddr,
    pub(crate) socket_path: std::path::PathBuf,
    pub(crate) store: Arc<Store>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) registry: Arc<Registry>,
    pub(crate) access: Arc<SharedAccess>,
    pub(crate) doorkeeper: Doorkeeper,
    pub(crate) running: JoinHandle<Result<(), ServeError>>,
    pub(crate) writer: Writer,
    pub(crate) wal: WalGenerator,
    _background: Background,
    pub(crate) dir: tempfile::TempDir,
}

fn parameters(version: &str) -> UpstreamParameters {
    let status = [
        ("in_hot_standby", "off"),
        ("integer_datetimes", "on"),
        ("TimeZone", "Europe/Berlin"),
        ("application_name", "walrelay"),
        ("client_encoding", "SQL_ASCII"),
        ("DateStyle", "ISO, DMY"),
        ("default_transaction_read_only", "off"),
        ("server_version", version),
    ];
    UpstreamParameters {
        wal_magic: None,
        status: status.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        settings: [("wal_level".to_owned(), "logical".to_owned())].into(),
    }
}

/// Roles that the tests log in as and no upstream is there to be asked for: a line for each that has none, without a password.
fn known(users: &str) -> String {
    let me = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name;
    let roles = ["rep", "a", "trust", "third", "other", "app", "mapped", "ca", "trusted", &me];
    let missing = roles.iter().filter(|role| !users.contains(&format!("\"{role}\" ")));
    missing.map(|role| format!("\"{role}\" \"\"\n")).collect()
}

pub(crate) fn access(hba: &str, users: &str) -> Access {
    Access {
        hba: if hba.is_empty() { Hba::builtin() } else { Hba::parse(Path::new("hba"), hba).unwrap() },
        users: Users::parse(Path::new("users"), &(known(users) + users)).unwrap(),
        idents: Idents::default(),
        admin_roles: vec!["a".to_owned()],
        monitor_roles: Vec::new(),
        tls: None,
    }
}

impl Relay {
    pub(crate) async fn start() -> Relay {
        Relay::with(Options::default()).await
    }

    pub(crate) async fn with(options: Options) -> Relay {
        let dir = crate::permissions::private_tempdir();
        let config = StoreConfig {
            data_dir: dir.path().join("data"),
            wal_write: WalWrite::Pwrite,
            wal_keep_size: options.wal_keep_size,
            max_slot_wal_keep_size: options.max_slot_wal_keep_size,
            max_replication_slots: 4,
        };
        let (store, mut writer, background) = Store::open(config).unwrap();
        let identity = Identity { system_id: SystemId(SYSTEM_ID), seg_size: SegSize::new(SEG).unwrap() };
        let id = WalIdentity { system_id: identity.system_id, seg_size: identity.seg_size };
        let magic = parameters(options.version).expected_magic().unwrap();
        let mut wal = WalGenerator::new(id, TimelineId::FIRST, START, 1).with_magic(magic);
        if options.with_wal {
            store.attach(identity, parameters(options.version)).unwrap();
            writer.begin(identity, TimelineHistory::first(), START);
            wal.fill(50_000);
            let bytes = wal.take();
            writer.append(START, &bytes).unwrap();
            writer.commit();
            let mut flushed = store.flushed();
            let all = |end: &Option<_>| *end == *store.written().borrow();
            tokio::time::timeout(DEADLINE, flushed.wait_for(all)).await.unwrap().unwrap();
        }
        if !options.roles.is_empty() {
            store.replace_state("roles.toml", options.roles).unwrap();
        }
        let sources = options.sources;
        let recall = (!sources.is_empty()).then(|| Recall::start(store.clone(), sources, 0).unwrap());
        let listen = vec![
            ListenAddr::Tcp { host: "127.0.0.1".into(), port: 0 },
            ListenAddr::Unix { dir: dir.path().to_owned(), port: None },
        ];
        let config = DownstreamConfig {
            listen,
            rules: Arc::new(crate::downstream::SharedRules::new(crate::downstream::SessionRules {
                limits: Limits {
                    connections: options.max_connections,
                    user_connections: options.max_user_connections,
                    wal_senders: options.max_wal_senders,
                },
                max_failed_logins: options.max_failed_logins,
                authentication_timeout: options.authentication_timeout,
                wal_sender_timeout: Some(Duration::from_secs(60)),
                shutdown_timeout: options.shutdown_timeout,
                sql_overlay: true,
                logged: crate::downstream::Logged::default(),
            })),
            recall,
            application_name: "walrelay".to_owned(),
            descriptors: Arc::new(options.descriptors),
            counts: Arc::default(),
            status: None,
            sockets: Arc::default(),
            successor: Arc::new(crate::restart::Successor::of_process()),
        };
        let access = Arc::new(SharedAccess::new(Access {
            tls: options.tls.as_ref().map(|files| ServerTls::load(files).unwrap()),
            ..access(options.hba, options.users)
        }));
        let shutdown = CancellationToken::new();
        let downstream =
            Downstream::bind(config, access.clone(), store.clone(), no_upstream(&store), shutdown.clone())
                .await
                .unwrap();
        let addresses = downstream.addresses();
        let [BoundAddr::Tcp(address), BoundAddr::Unix(socket_path)] = &addresses[..] else {
            panic!("{addresses:?}")
        };
        let (registry, doorkeeper) =
            (downstream.registry().clone(), downstream.doorkeeper().expect("there are random bytes"));
        Relay {
            address: *address,
            socket_path: socket_path.clone(),
            store,
            shutdown,
            registry,
            access,
            doorkeeper,
            running: tokio::spawn(downstream.run()),
            writer,
            wal,
            _background: background,
            dir,
        }
    }

    /// More WAL arrives from upstream; returns its bytes. It ends with a record.
    pub(crate) fn receive(&mut self, make: impl FnOnce(&mut WalGenerator)) -> Vec<u8> {
        let at = self.wal.position().rewind(self.wal.bytes().len() as u64);
        make(&mut self.wal);
        let bytes = self.wal.take();
        self.writer.append(at, &bytes).unwrap();
        self.writer.commit();
        bytes
    }

    /// The upstream has switched to timeline `tli` where our WAL ends.
    pub(crate) fn switch_timeline(&mut self, tli: u32) -> Lsn {
        let (old, tli) = (self.store.tip().unwrap(), TimelineId::new(tli).unwrap());
        let before = self.store.history_file(old.tli).unwrap().unwrap_or_default();
        let line = format!("{}\t{}\tno recovery target specified\n", old.tli, old.write_lsn);
        let content = [&before[..], line.as_bytes()].concat();
        self.store.save_history_file(tli, &content).unwrap();
        self.writer.switch_timeline(TimelineHistory::parse(tli, &content).unwrap()).unwrap();
        self.wal.switch_timeline(tli);
        old.write_lsn
    }

    /// The upstream is on a timeline 3 that comes from timeline 1, of which `wal` had been made.
    pub(crate) async fn go_back(&mut self, wal: WalGenerator) {
        let written = *self.store.written().borrow();
        self.store.flushed().wait_for(|flushed| *flushed == written).await.unwrap();
        let held = self.writer.find(TimelineHistory::first()).unwrap().unwrap();
        self.writer.take_up(held, TimelineId::new(3).unwrap()).unwrap();
        self.wal = wal;
    }

    pub(crate) async fn connect(&self) -> Client<TcpStream> {
        let socket = TcpStream::connect(self.address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Client { socket, buffer: Vec::new() }
    }

    /// A client that has logged in, and what it was told.
    pub(crate) async fn log_in(&self, parameters: &[(&str, &str)]) -> (Client<TcpStream>, Vec<Message>) {
        let mut client = self.connect().await;
        client.start_up(parameters).await;
        let messages = client.until_ready().await;
        (client, messages)
    }

    pub(crate) async fn session(&self) -> Client<TcpStream> {
        self.log_in(&[("user", "rep"), ("replication", "true")]).await.0
    }
}

/// A message from the server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Message {
    pub(crate) kind: u8,
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// Fields of an ErrorResponse or NoticeResponse, S V C M D H in their order.
    pub(crate) fn fields(&self) -> Vec<(char, String)> {
        let fields = self.body.split(|&b| b == 0).filter(|field| !field.is_empty());
        fields.map(|f| (char::from(f[0]), String::from_utf8(f[1..].to_vec()).unwrap())).collect()
    }

    pub(crate) fn field(&self, code: char) -> String {
        self.fields().into_iter().find(|(found, _)| *found == code).map(|(_, text)| text).unwrap_or_default()
    }

    /// Severity, SQLSTATE and text.
    pub(crate) fn error(&self) -> (String, String, String) {
        assert!(matches!(self.kind, b'E' | b'N'), "{self:?}");
        (self.field('S'), self.field('C'), self.field('M'))
    }

    /// Values of a DataRow.
    pub(crate) fn row(&self) -> Vec<Option<String>> {
        assert_eq!(self.kind, b'D', "{self:?}");
        let mut rest = &self.body[2..];
        let mut values = vec![];
        while let Some((len, after)) = rest.split_first_chunk() {
            let len = i32::from_be_bytes(*len);
            let (value, after) = after.split_at(len.max(0) as usize);
            values.push((len >= 0).then(|| String::from_utf8(value.to_vec()).unwrap()));
            rest = after;
        }
        values
    }

    /// Name, type and size of each column of a RowDescription; the rest is always the same.
    pub(crate) fn columns(&self) -> Vec<(String, u32, i16)> {
        assert_eq!(self.kind, b'T', "{self:?}");
        let mut rest = &self.body[2..];
        let mut columns = vec![];
        while let Some(end) = rest.iter().position(|&b| b == 0) {
            let name = String::from_utf8(rest[..end].to_vec()).unwrap();
            let fixed = &rest[end + 1..end + 19];
            assert_eq!((&fixed[..6], &fixed[12..]), (&[0; 6][..], &[255, 255, 255, 255, 0, 0][..]));
            let oid = u32::from_be_bytes(fixed[6..10].try_into().unwrap());
            columns.push((name, oid, i16::from_be_bytes(fixed[10..12].try_into().unwrap())));
            rest = &rest[end + 19..];
        }
        columns
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.strip_suffix(b"\0").unwrap_or(&self.body).to_vec()).unwrap()
    }
}

pub(crate) fn kinds(messages: &[Message]) -> String {
    messages.iter().map(|message| char::from(message.kind)).collect()
}

pub(crate) struct Client<S> {
    pub(crate) socket: S,
    pub(crate) buffer: Vec<u8>,
}

pub(crate) fn startup_packet(version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    for (name, value) in parameters {
        body.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    body.push(0);
    [&(body.len() as u32 + 4).to_be_bytes()[..], &body].concat()
}

impl<S: AsyncReadExt + AsyncWriteExt + Unpin> Client<S> {
    pub(crate) fn new(socket: S) -> Client<S> {
        Client { socket, buffer: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn start_up(&mut self, parameters: &[(&str, &str)]) {
        self.send(&startup_packet(3 << 16, parameters)).await;
    }

    pub(crate) async fn message(&mut self, kind: u8, body: &[u8]) {
        let len = (body.len() as u32 + 4).to_be_bytes();
        self.send(&[&[kind][..], &len, body].concat()).await;
    }

    /// One call of read, however much that gives; nothing at the end.
    pub(crate) async fn read_once(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; 64 * 1024];
        let read = tokio::time::timeout(DEADLINE, self.socket.read(&mut bytes)).await.expect("an answer");
        bytes.truncate(read.unwrap_or(0));
        bytes
    }

    /// The next message; `None` when the server has closed the connection.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(word) = self.buffer.get(1..5) {
                let len = u32::from_be_bytes(word.try_into().unwrap()) as usize;
                if self.buffer.len() > len {
                    let rest = self.buffer.split_off(1 + len);
                    let whole = std::mem::replace(&mut self.buffer, rest);
                    return Some(Message { kind: whole[0], body: whole[5..].to_vec() });
                }
            }
            let bytes = self.read_once().await;
            if bytes.is_empty() {
                assert!(self.buffer.is_empty(), "half a message at the end: {:?}", self.buffer);
                return None;
            }
            self.buffer.extend(bytes);
        }
    }

    /// Starts streaming; the answer must be CopyBoth.
    pub(crate) async fn start(&mut self, rest: &str) {
        self.message(b'Q', format!("START_REPLICATION {rest}\0").as_bytes()).await;
        let answer = self.next().await.expect("an answer");
        assert_eq!((answer.kind, &answer.body[..]), (b'W', &[0, 0, 0][..]), "{answer:?}");
    }

    /// The next XLogData: its position and its WAL.
    pub(crate) async fn wal(&mut self) -> (Lsn, Vec<u8>) {
        let message = self.next().await.expect("WAL");
        assert_eq!(message.kind, b'd', "{message:?}");
        match ServerMessage::decode(&message.body).unwrap() {
            ServerMessage::XLogData(header, wal) => (header.start, wal.to_vec()),
            other => panic!("{other:?}"),
        }
    }

    /// The next keepalive: its position and whether it asks for an answer.
    pub(crate) async fn keepalive(&mut self) -> (Lsn, bool) {
        let message = self.next().await.expect("a keepalive");
        match ServerMessage::decode(&message.body).unwrap() {
            ServerMessage::Keepalive(keepalive) => (keepalive.end, keepalive.reply_requested),
            other => panic!("{other:?}"),
        }
    }

    /// Reports positions.
    pub(crate) async fn status(&mut self, write: u64, flush: u64, reply_requested: bool) {
        let lsn = |position| Lsn::new(position).valid();
        let send_time = PgTimestamp::from_system_time(std::time::SystemTime::now());
        let (write, flush) = (lsn(write), lsn(flush));
        let status = StandbyStatusUpdate { write, flush, apply: None, send_time, reply_requested };
        self.send(&status.frame()).await;
    }

    /// Everything up to ReadyForQuery.
    pub(crate) async fn until_ready(&mut self) -> Vec<Message> {
        let mut messages = vec![];
        loop {
            let message = self.next().await.unwrap_or_else(|| panic!("closed after {messages:?}"));
            messages.push(message);
            if messages.last().unwrap().kind == b'Z' {
                return messages;
            }
        }
    }

    /// Everything up to the end of the connection.
    pub(crate) async fn until_closed(&mut self) -> Vec<Message> {
        let mut messages = vec![];
        while let Some(message) = self.next().await {
            messages.push(message);
        }
        messages
    }

    /// Whether the login succeeds; the FATAL error if it does not.
    pub(crate) async fn until_closed_or_ready(&mut self) -> Result<(), (String, String)> {
        while let Some(message) = self.next().await {
            match message.kind {
                b'Z' => return Ok(()),
                b'E' => return Err((message.field('C'), message.field('M'))),
                _ => {}
            }
        }
        panic!("closed without a word");
    }

    pub(crate) async fn query(&mut self, text: &str) -> Vec<Message> {
        self.message(b'Q', &[text.as_bytes(), b"\0"].concat()).await;
        self.until_ready().await
    }

    /// The only row of an answer with one.
    pub(crate) async fn row(&mut self, text: &str) -> Vec<Option<String>> {
        let answer = self.query(text).await;
        assert_eq!(kinds(&answer), "TDCZ", "{text}: {answer:?}");
        answer[1].row()
    }

    /// SQLSTATE and text of an answer that is one ERROR; the session goes on.
    pub(crate) async fn error(&mut self, text: &str) -> (String, String) {
        let answer = self.query(text).await;
        assert_eq!(kinds(&answer), "EZ", "{text}: {answer:?}");
        let (severity, sqlstate, message) = answer[0].error();
        assert_eq!(severity, "ERROR");
        (sqlstate, message)
    }

    /// The FATAL error with which the server closes the connection.
    pub(crate) async fn fatal(&mut self) -> (String, String) {
        let messages = self.until_closed().await;
        let last = messages.last().expect("an error before the end");
        let (severity, sqlstate, message) = last.error();
        assert_eq!(severity, "FATAL", "{messages:?}");
        (sqlstate, message)
    }
}

pub(crate) fn pair(sqlstate: &str, message: &str) -> (String, String) {
    (sqlstate.to_owned(), message.to_owned())
}

/// A gateway that knows no server.
fn no_upstream(store: &Arc<Store>) -> Arc<Gateway> {
    let conninfo = ConnInfo::parse("host=localhost user=nobody", &Environment::of_user("nobody"));
    let config = GatewayConfig {
        conninfo: conninfo.expect("the connection string is well-formed"),
        auth_query: None,
        auth_dbname: "postgres".to_owned(),
        base_backup_max_rate: None,
    };
    Arc::new(Gateway::new(config, Following::channel().1, store.clone()))
}
