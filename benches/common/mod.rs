//! The lower half of a relay, in this process, for benches.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use walrelay::archive::Recall;
use walrelay::auth::hba::{Hba, Idents};
use walrelay::auth::users::Users;
use walrelay::conninfo::{ConnInfo, Environment};
use walrelay::downstream::{
    Access, BoundAddr, Downstream, DownstreamConfig, Limits, ListenAddr, SharedAccess,
};
use walrelay::gateway::{Gateway, GatewayConfig};
use walrelay::store::{Background, Identity, Store, StoreConfig, UpstreamParameters, WalWrite, Writer};
use walrelay_proto::{Lsn, TimelineHistory, WalIdentity};

/// A store in a new directory, ready for WAL from `start` on.
pub(crate) fn new_store(
    data_dir: &Path,
    id: WalIdentity,
    start: Lsn,
    wal_keep_size: u64,
) -> (Arc<Store>, Writer, Background) {
    let config = StoreConfig {
        data_dir: data_dir.to_owned(),
        wal_write: WalWrite::Pwrite,
        wal_keep_size,
        max_slot_wal_keep_size: None,
        max_replication_slots: 1,
    };
    let identity = Identity { system_id: id.system_id, seg_size: id.seg_size };
    let (store, mut writer, background) = Store::open(config).expect("the directory is new");
    let status = [("server_version".to_owned(), "18.0".to_owned())].to_vec();
    let parameters = UpstreamParameters { status, ..Default::default() };
    store.attach(identity, parameters).expect("the directory is new");
    writer.begin(identity, TimelineHistory::first(), start);
    (store, writer, background)
}

/// Lets everybody on this machine stream from the store, for as long as the runtime lives.
pub(crate) fn serve(runtime: &Runtime, store: Arc<Store>, recall: Option<Arc<Recall>>) -> SocketAddr {
    let downstream = runtime.block_on(bind(store, recall));
    let Some(BoundAddr::Tcp(address)) = downstream.addresses().first().cloned() else {
        unreachable!("it listens on one TCP address")
    };
    runtime.spawn(downstream.run());
    address
}

async fn bind(store: Arc<Store>, recall: Option<Arc<Recall>>) -> Downstream {
    let config = DownstreamConfig {
        listen: vec![ListenAddr::Tcp { host: "127.0.0.1".to_owned(), port: 0 }],
        rules: Arc::new(walrelay::downstream::SharedRules::new(walrelay::downstream::SessionRules {
            limits: Limits { connections: 100, user_connections: 0, wal_senders: 100 },
            max_failed_logins: 0,
            authentication_timeout: Duration::from_secs(60),
            wal_sender_timeout: None,
            shutdown_timeout: Duration::ZERO,
            sql_overlay: true,
            logged: walrelay::downstream::Logged::default(),
        })),
        recall,
        application_name: "walrelay".to_owned(),
        descriptors: Arc::new(walrelay::descriptors::Descriptors::raise(0, 0)),
        counts: Arc::default(),
        status: None,
        sockets: Arc::default(),
        successor: Arc::new(walrelay::restart::Successor::of_process()),
    };
    let hba = "host all,replication all 127.0.0.1/32 trust";
    let hba = Hba::parse(Path::new("hba"), hba).expect("one valid line");
    // Without an upstream it is the only way to be known.
    let users = Users::parse(Path::new("users"), "\"postgres\" \"\"").expect("one valid line");
    let access = SharedAccess::new(Access {
        hba,
        users,
        idents: Idents::default(),
        admin_roles: Vec::new(),
        monitor_roles: Vec::new(),
        tls: None,
    });
    let (gateway, ended) = (no_upstream(&store), CancellationToken::new());
    let bound = Downstream::bind(config, Arc::new(access), store, gateway, ended).await;
    bound.expect("a free port")
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
    Arc::new(Gateway::new(config, walrelay::upstream::Following::channel().1, store.clone()))
}
