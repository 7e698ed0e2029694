//! Settings as they are in effect, for whoever looks at a running relay.

use std::path::PathBuf;
use std::time::Duration;

use walrelay_proto::ack::Budget;

use super::{Config, LogFormat};
use crate::archive::{Place, Target};
use crate::redact::redact;
use crate::store::WalWrite;

impl Config {
    /// All settings by their names in the file, defaults filled in, without what is secret.
    pub fn shown(&self) -> Vec<(&'static str, String)> {
        // A new one that is not shown here does not compile.
        let Config {
            upstream,
            listen,
            http_listen,
            http,
            slot,
            hba_file,
            auth_file,
            ident_file,
            admin_roles,
            monitor_roles,
            tls,
            limits,
            max_failed_logins,
            auth_query,
            auth_dbname,
            sql_overlay,
            base_backup_max_rate,
            ack,
            archive,
            recall_size,
            log_format,
            log_level,
            logged,
            store,
            wal_sender_timeout,
            wal_receiver_timeout,
            authentication_timeout,
            shutdown_timeout,
            typed,
        } = self;
        let lapse = ack.lapse.as_ref();
        vec![
            ("config", path(&typed.file)),
            ("upstream", upstream.to_string()),
            ("data-dir", store.data_dir.display().to_string()),
            ("listen", listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")),
            ("http-listen", http_listen.as_ref().map(ToString::to_string).unwrap_or_default()),
            ("http-ssl", switch(http.ssl)),
            ("http-auth", switch(http.auth)),
            ("slot", slot.to_string()),
            ("hba-file", path(hba_file)),
            ("auth-file", path(auth_file)),
            ("ident-file", path(ident_file)),
            ("admin-role", admin_roles.join(",")),
            ("monitor-role", monitor_roles.join(",")),
            ("ssl", switch(tls.is_some())),
            ("max-connections", limits.connections.to_string()),
            ("max-user-connections", limits.user_connections.to_string()),
            ("max-wal-senders", limits.wal_senders.to_string()),
            ("max-failed-logins", max_failed_logins.to_string()),
            ("auth-query", auth_query.as_deref().map(redact).unwrap_or_default()),
            ("auth-dbname", auth_dbname.clone()),
            ("sql-overlay", switch(*sql_overlay)),
            ("base-backup-max-rate", base_backup_max_rate.map(size).unwrap_or_default()),
            ("ack-write", ack.write.to_string()),
            ("ack-flush", ack.flush.to_string()),
            ("ack-apply", ack.apply.to_string()),
            ("ack-timeout", timeout(lapse.map(|lapse| lapse.timeout))),
            ("ack-degrade", lapse.map(|lapse| lapse.to.to_string()).unwrap_or_default()),
            ("ack-budget", lapse.and_then(|lapse| lapse.budget).map(budget).unwrap_or_default()),
            ("archive", archive.iter().map(target).collect::<Vec<_>>().join(", ")),
            ("recall-size", size(*recall_size)),
            ("log-format", format(*log_format)),
            ("log-level", log_level.to_string()),
            ("log-connections", switch(logged.connections)),
            ("log-disconnections", switch(logged.disconnections)),
            ("log-replication-commands", switch(logged.replication_commands)),
            ("wal-write", if store.wal_write == WalWrite::Pwrite { "pwrite" } else { "mmap" }.to_owned()),
            ("wal-keep-size", size(store.wal_keep_size)),
            ("max-slot-wal-keep-size", store.max_slot_wal_keep_size.map_or("-1".to_owned(), size)),
            ("max-replication-slots", store.max_replication_slots.to_string()),
            ("wal-sender-timeout", timeout(*wal_sender_timeout)),
            ("wal-receiver-timeout", timeout(*wal_receiver_timeout)),
            ("authentication-timeout", timeout(Some(*authentication_timeout))),
            ("shutdown-timeout", timeout(Some(*shutdown_timeout))),
        ]
    }
}

fn path(path: &Option<PathBuf>) -> String {
    path.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
}

fn switch(on: bool) -> String {
    if on { "on" } else { "off" }.to_owned()
}

fn format(format: LogFormat) -> String {
    match format {
        LogFormat::Auto => "auto",
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    }
    .to_owned()
}

fn budget(budget: Budget) -> String {
    format!("{} per {}", timeout(Some(budget.time)), timeout(Some(budget.per)))
}

fn target(target: &Target) -> String {
    match &target.place {
        Place::Objects(place) => redact(&format!("{} ({})", target.name, place.identity())),
        Place::Command(_) => format!("{} (command)", target.name),
    }
}

fn size(bytes: u64) -> String {
    with_unit(bytes, &[("TB", 1 << 40), ("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10), ("B", 1)])
}

fn timeout(time: Option<Duration>) -> String {
    let millis = time.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    with_unit(millis, &[("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000), ("ms", 1)])
}

/// In the largest unit that leaves a whole number.
fn with_unit(number: u64, units: &[(&str, u64)]) -> String {
    let fitting = units.iter().find(|(_, unit)| number != 0 && number.is_multiple_of(*unit));
    fitting.map_or_else(|| "0".to_owned(), |(name, unit)| format!("{}{name}", number / unit))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::config::Cli;
    use crate::conninfo::Environment;

    fn shown(args: &[&str]) -> Vec<(&'static str, String)> {
        let cli = Cli::try_parse_from([&["walrelay"][..], args].concat()).unwrap();
        Config::resolve(cli, &Environment::of_user("tester")).unwrap().shown()
    }

    #[test]
    fn each_flag_is_shown_under_its_name() {
        let shown = shown(&["--upstream", "h", "--data-dir", "/d"]);
        for flag in Cli::command().get_arguments().filter_map(|arg| arg.get_long()) {
            let is_part = |prefix: &str| flag.starts_with(prefix);
            let known = shown.iter().any(|(name, _)| *name == flag) || is_part("ssl-");
            assert!(known || flag == "help" || flag == "version", "--{flag}");
        }
    }

    #[test]
    fn values_are_shown_with_their_units_and_without_secrets() {
        let shown = shown(&[
            "--upstream",
            "host=h user=u password=hunter2",
            "--data-dir",
            "/d",
            "--archive",
            "s3://bucket/prefix",
            "--wal-keep-size",
            "1536MB",
            "--wal-sender-timeout",
            "0",
        ]);
        let value = |name| shown.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str());
        assert_eq!(value("wal-keep-size"), Some("1536MB"));
        assert_eq!((value("wal-sender-timeout"), value("shutdown-timeout")), (Some("0"), Some("10s")));
        assert_eq!(value("max-slot-wal-keep-size"), Some("-1"));
        assert!(value("archive").unwrap().contains("bucket"), "{shown:?}");
        assert!(!format!("{shown:?}").contains("hunter2"), "{shown:?}");
    }
}
