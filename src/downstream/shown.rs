//! What SHOW shows: the session's settings, the relay's own, and those of the upstream.

use std::borrow::Cow;
use std::time::Duration;

use super::Shared;
use super::settings::{self, Settings};
use crate::store::UpstreamParameters;

/// Everything a setting's value may come from.
pub(super) struct Shown<'a> {
    pub(super) settings: &'a Settings,
    pub(super) shared: &'a Shared,
    pub(super) user: &'a str,
    pub(super) wal_sender_timeout: Option<Duration>,
}

impl Shown<'_> {
    /// The session's value, else the relay's own, else what the upstream has told. `name` as PostgreSQL spells it.
    pub(super) fn setting<'a>(
        &'a self,
        name: &str,
        upstream: &'a UpstreamParameters,
    ) -> Option<Cow<'a, str>> {
        let reported =
            |name| upstream.settings.get(name).map(String::as_str).or_else(|| upstream.status(name));
        self.settings
            .get(name)
            .map(Cow::Borrowed)
            .or_else(|| self.own_setting(name).map(Cow::Owned))
            .or_else(|| reported(name).map(Cow::Borrowed))
            .or_else(|| default_setting(name, upstream))
    }

    fn own_setting(&self, name: &str) -> Option<String> {
        Some(match name {
            "application_name" => String::new(),
            "client_encoding" => "SQL_ASCII".to_owned(),
            "session_authorization" => self.user.to_owned(),
            "is_superuser" => "off".to_owned(),
            "wal_segment_size" => self.shared.store.identity()?.seg_size.to_show(),
            "wal_sender_timeout" => settings::show_timeout(self.wal_sender_timeout),
            "wal_sender_shutdown_timeout"
                if self.shared.store.upstream_parameters().major_version() >= 19 =>
            {
                settings::show_timeout(Some(self.shared.config.rules.current().shutdown_timeout))
            }
            // For other relays and our own commands: what is received, synced or not, and whom [ack] names.
            "walrelay.write_lsn" => self.shared.store.tip()?.write_lsn.to_string(),
            "walrelay.synchronous_standby_names" => {
                self.shared.store.consumers().acknowledgements().names_awaited()
            }
            "max_wal_senders" => self.shared.config.rules.current().limits.wal_senders.to_string(),
            "max_replication_slots" => self.shared.store.slots().limit().to_string(),
            "wal_keep_size" => settings::show_megabytes(Some(self.shared.store.keep_sizes().wal_keep_size)),
            "max_slot_wal_keep_size" => {
                settings::show_megabytes(self.shared.store.keep_sizes().max_slot_wal_keep_size)
            }
            _ => return None,
        })
    }
}

/// What follows from something else the upstream has told.
fn default_setting(name: &str, upstream: &UpstreamParameters) -> Option<Cow<'static, str>> {
    let version = settings::server_version_num(upstream);
    match name {
        "server_version_num" if version > 0 => Some(version.to_string().into()),
        "transaction_read_only" => {
            let standby = upstream.status("in_hot_standby") == Some("on");
            let default = upstream.status("default_transaction_read_only") == Some("on");
            Some(if standby || default { "on" } else { "off" }.into())
        }
        "in_hot_standby" | "default_transaction_read_only" => Some("off".into()),
        // Of an upstream that does not show it.
        "data_directory_mode" => Some("0700".into()),
        "wal_level" => Some("replica".into()),
        "integer_datetimes" | "standard_conforming_strings" => Some("on".into()),
        "server_encoding" => Some("SQL_ASCII".into()),
        "DateStyle" => Some("ISO, MDY".into()),
        "IntervalStyle" => Some("postgres".into()),
        "TimeZone" => Some("GMT".into()),
        _ => None,
    }
}
