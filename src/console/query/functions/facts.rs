//! What is known of the relay, of the session, and of the upstream.

use super::*;
use crate::console::query::value::{self, Value};
use crate::console::{Change, Instead, unreachable_upstream};
use Type::{Bool, Int4, Int8, Name, PgLsn, Text, Timestamptz, Void};

/// Of what is not known the upstream has to be asked, which nobody can.
fn known<T>(value: Option<T>) -> Result<T> {
    value.ok_or_else(unreachable_upstream)
}

fn user(cx: &mut Context<'_>) -> Result<Value> {
    Ok(Value::text(cx.facts.user()))
}

fn version(cx: &mut Context<'_>) -> Result<Value> {
    let version = known(cx.facts.setting("server_version"))?;
    Ok(Value::text(format!("PostgreSQL {version} (through walrelay {})", env!("CARGO_PKG_VERSION"))))
}

fn current_setting(cx: &mut Context<'_>, arguments: &[Value]) -> Result<Value> {
    let (name, missing_ok) = match arguments {
        [Value::Text(name)] => (name, false),
        [Value::Text(name), Value::Bool(missing_ok)] => (name, *missing_ok),
        _ => return nothing(),
    };
    match cx.facts.setting(name) {
        Some(value) => Ok(Value::text(value)),
        None if missing_ok && cx.facts.instead() == Instead::OwnDatabase => nothing(),
        None => Err(crate::console::unknown_setting(name, cx.facts)),
    }
}

/// Nothing is set but the name that the session goes by.
fn set_config(cx: &mut Context<'_>, arguments: &[Value]) -> Result<Value> {
    let [name, value, is_local] = arguments else { return nothing() };
    if let (Value::Text(name), Value::Text(value), Value::Bool(false)) = (name, value, is_local)
        && &**name == "application_name"
    {
        // Of many rows the last one counts.
        cx.changes = vec![Change::ApplicationName(value.to_string())];
    }
    Ok(value.clone())
}

/// PG: `recovery is in progress`, as a standby says it.
fn in_recovery(hint: &str) -> Result<Value> {
    let text = "recovery is in progress";
    Err(PgError::error(sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE, text).with_hint(hint))
}

const NO_CONTROL: &str = "WAL control functions cannot be executed during recovery.";

fn lsn(text: Option<String>) -> Result<Value> {
    text.map_or(Ok(Value::Null), |text| value::read(&text, PgLsn))
}

/// In the relay's own database the end of its WAL, as it writes it; who takes the upstream's place is no primary.
fn end_of_wal(cx: &mut Context<'_>, end: Option<String>) -> Result<Value> {
    match cx.facts.instead() {
        Instead::OwnDatabase => lsn(end),
        Instead::Upstream => in_recovery(NO_CONTROL),
    }
}

/// There is nothing in it that takes room.
fn database_size(cx: &mut Context<'_>, name: &Value) -> Result<Value> {
    let Value::Text(name) = name else { return nothing() };
    if **name == cx.facts.database() && cx.facts.instead() == Instead::OwnDatabase {
        return Ok(Value::Int(0));
    }
    known((cx.facts.instead() == Instead::OwnDatabase).then_some(()))?;
    let text = format!("database \"{name}\" does not exist");
    Err(PgError::error(sqlstate::INVALID_CATALOG_NAME, text))
}

fn time(text: Option<String>) -> Result<Value> {
    text.map_or(Ok(Value::Null), |text| value::read(&text, Timestamptz))
}

/// Of the role of this session alone something is known.
fn has_role(cx: &mut Context<'_>, user: &Value, role: &Value) -> Result<Value> {
    let (Value::Text(user), Value::Text(role)) = (user, role) else { return nothing() };
    let user: &str = user;
    if user != cx.facts.user() {
        return Err(super::super::unsupported("pg_has_role() of another role"));
    }
    match &**role {
        role if role == user => Ok(Value::Bool(true)),
        "pg_monitor" | "pg_read_all_settings" | "pg_read_all_stats" => {
            known(cx.facts.may_monitor()).map(Value::Bool)
        }
        _ => known(cx.facts.is_superuser()).map(Value::Bool),
    }
}

const fn lax(name: &'static str, arguments: &'static [Type], returns: Type, run: Run) -> Function {
    Function { name, arguments, returns, is_strict: false, run }
}

pub(super) const FUNCTIONS: &[Function] = &[
    function("version", &[], Text, |cx, _| version(cx)),
    function("current_user", &[], Name, |cx, _| user(cx)),
    function("session_user", &[], Name, |cx, _| user(cx)),
    function("user", &[], Name, |cx, _| user(cx)),
    function("current_role", &[], Name, |cx, _| user(cx)),
    function("current_database", &[], Name, |cx, _| Ok(Value::text(cx.facts.database()))),
    function("current_catalog", &[], Name, |cx, _| Ok(Value::text(cx.facts.database()))),
    // There is none in which something could be made.
    function("current_schema", &[], Name, |_, _| nothing()),
    function("pg_backend_pid", &[], Int4, |cx, _| Ok(Value::Int(cx.facts.pid().into()))),
    function("pg_advisory_unlock_all", &[], Void, |_, _| Ok(Value::text(""))),
    function("current_setting", &[Text], Text, current_setting),
    function("current_setting", &[Text, Bool], Text, current_setting),
    lax("set_config", &[Text, Text, Bool], Text, set_config),
    function("pg_is_in_recovery", &[], Bool, |cx, _| known(cx.facts.is_in_recovery()).map(Value::Bool)),
    function("pg_last_wal_receive_lsn", &[], PgLsn, |cx, _| lsn(cx.facts.flush_lsn())),
    // Nothing is replayed here.
    function("pg_last_wal_replay_lsn", &[], PgLsn, |_, _| nothing()),
    function("pg_last_xact_replay_timestamp", &[], Timestamptz, |_, _| nothing()),
    function("pg_is_wal_replay_paused", &[], Bool, |_, _| Ok(Value::Bool(false))),
    function("pg_current_wal_lsn", &[], PgLsn, |cx, _| end_of_wal(cx, cx.facts.write_lsn())),
    function("pg_current_wal_flush_lsn", &[], PgLsn, |cx, _| end_of_wal(cx, cx.facts.flush_lsn())),
    function("pg_database_size", &[Name], Int8, |cx, a| database_size(cx, &a[0])),
    function("pg_current_wal_insert_lsn", &[], PgLsn, |_, _| in_recovery(NO_CONTROL)),
    function("pg_switch_wal", &[], PgLsn, |_, _| in_recovery(NO_CONTROL)),
    function("pg_walfile_name", &[PgLsn], Text, |_, _| {
        in_recovery("pg_walfile_name() cannot be executed during recovery.")
    }),
    function("pg_postmaster_start_time", &[], Timestamptz, |cx, _| time(cx.facts.started_at())),
    function("pg_conf_load_time", &[], Timestamptz, |cx, _| time(cx.facts.configured_at())),
    function("pg_has_role", &[Name, Text, Text], Bool, |cx, a| has_role(cx, &a[0], &a[1])),
    function("pg_has_role", &[Text, Text], Bool, |cx, a| {
        let user = Value::text(cx.facts.user());
        has_role(cx, &user, &a[0])
    }),
];
