//! `--ack-write` and its kin, `[ack]`: who must have WAL before it is reported upstream.

use std::time::Duration;

use serde::Deserialize;
use walrelay_proto::ack::{Budget, Expression, Lapse, Level, Rules};

use super::cli::text;
use super::{ConfigError, units, value};

/// What was typed. In the file the names stand in `[ack]`, without `ack-`.
#[derive(clap::Args, Deserialize, Debug, Default, Clone, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct AckSettings {
    /// Who must have written WAL before the upstream is told that it is written: local, connected, ANY n (names),
    /// FIRST n (names), ALL (names), joined with AND [default: local]
    #[arg(id = "ack_write", long = "ack-write", env = "WALRELAY_ACK_WRITE", value_name = "WHO")]
    write: Option<String>,

    /// Who must have synced WAL before the upstream is told that it is durable [default: local]
    #[arg(id = "ack_flush", long = "ack-flush", env = "WALRELAY_ACK_FLUSH", value_name = "WHO")]
    flush: Option<String>,

    /// Who must have replayed WAL before the upstream is told that it is applied [default: connected]
    #[arg(id = "ack_apply", long = "ack-apply", env = "WALRELAY_ACK_APPLY", value_name = "WHO")]
    apply: Option<String>,

    /// How long those are waited for before --ack-degrade holds, e.g. 10s; 0 for ever [default: 0]
    #[arg(id = "ack_timeout", long = "ack-timeout", env = "WALRELAY_ACK_TIMEOUT", value_name = "TIME")]
    #[serde(default, deserialize_with = "text")]
    timeout: Option<String>,

    /// Who must have WAL when they do not answer in time: local, or another expression
    #[arg(id = "ack_degrade", long = "ack-degrade", env = "WALRELAY_ACK_DEGRADE", value_name = "WHO")]
    degrade: Option<String>,

    /// How long that may go on, e.g. "60s per 1d"; then they are waited for again [default: for ever]
    #[arg(id = "ack_budget", long = "ack-budget", env = "WALRELAY_ACK_BUDGET", value_name = "TIME per TIME")]
    budget: Option<String>,
}

impl AckSettings {
    /// What is set here, else what is set in `other`.
    pub(super) fn or(self, other: AckSettings) -> AckSettings {
        AckSettings {
            write: self.write.or(other.write),
            flush: self.flush.or(other.flush),
            apply: self.apply.or(other.apply),
            timeout: self.timeout.or(other.timeout),
            degrade: self.degrade.or(other.degrade),
            budget: self.budget.or(other.budget),
        }
    }

    pub(super) fn rules(&self) -> Result<Rules, ConfigError> {
        let default = Rules::default();
        Ok(Rules {
            write: expression("ack-write", self.write.as_deref())?.unwrap_or(default.write),
            flush: expression("ack-flush", self.flush.as_deref())?.unwrap_or(default.flush),
            apply: expression("ack-apply", self.apply.as_deref())?.unwrap_or(default.apply),
            lapse: self.lapse()?,
        })
    }

    fn lapse(&self) -> Result<Option<Lapse>, ConfigError> {
        let timeout = self.timeout.as_deref().map(units::timeout).transpose();
        let timeout = timeout.map_err(|reason| value("ack-timeout", &reason))?.flatten();
        let to = expression("ack-degrade", self.degrade.as_deref())?;
        let budget = self.budget.as_deref().map(budget).transpose();
        let budget = budget.map_err(|reason| value("ack-budget", &reason))?;
        match (timeout, to) {
            (Some(timeout), Some(to)) => Ok(Some(Lapse { timeout, to, budget })),
            (Some(_), None) => {
                Err(value("ack-timeout", &"needs --ack-degrade, which says who is asked then"))
            }
            (None, Some(_)) => Err(value("ack-degrade", &"needs --ack-timeout, which says when it holds")),
            (None, None) if budget.is_some() => {
                Err(value("ack-budget", &"needs --ack-timeout and --ack-degrade, whose time it limits"))
            }
            (None, None) => Ok(None),
        }
    }
}

fn expression(name: &'static str, text: Option<&str>) -> Result<Option<Expression>, ConfigError> {
    let parsed = text.map(str::parse::<Expression>).transpose();
    parsed.map_err(|error| value(name, &format!("{error}: {}", text.unwrap_or_default())))
}

/// `60s per 1d`
fn budget(text: &str) -> Result<Budget, String> {
    let expected = || format!("\"{text}\" is not like \"60s per 1d\"");
    let (time, per) = text.split_once(" per ").ok_or_else(expected)?;
    let (time, per) = (units::time(time)?, units::time(per)?);
    if time.is_zero() || per < time {
        return Err(format!("\"{text}\" is no part of a longer time"));
    }
    if per > Duration::from_secs(366 * 86_400) {
        return Err(format!("\"{text}\" is more than a year"));
    }
    Ok(Budget { time, per })
}

/// What will surprise somebody: to be logged.
pub fn ack_warnings(rules: &Rules) -> Vec<String> {
    let mut warnings = Vec::new();
    for level in Level::ALL {
        let (name, rule, waits) = (level.as_str(), rules.at(level), level.waited_for_by());
        let single = rule.groups().find(|group| group.members.len() == 1);
        if let Some(member) = single.and_then(|group| group.members.first()) {
            let alone = format!("[ack] {name} = {rule} waits for {member} alone: while it is away, or");
            let slow = if level == Level::Apply { "a query there holds up its replay" } else { "slow" };
            warnings.push(match &rules.lapse {
                None => format!(
                    "{alone} {slow}, commits with synchronous_commit = {waits} wait; name another one, or set timeout and \
                     degrade"
                ),
                Some(lapse) => format!(
                    "{alone} {slow}, commits with synchronous_commit = {waits} wait for {:?}, and then {name} = {} holds; \
                     name another one if that is to be rare",
                    lapse.timeout, lapse.to
                ),
            });
        }
    }
    if rules.apply.is_local() {
        warnings.push(
            "[ack] apply = local: commits with synchronous_commit = remote_apply wait for no standby, and may be seen on none"
                .to_owned(),
        );
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> AckSettings {
        let get = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, text)| (*text).to_owned());
        AckSettings {
            write: get("write"),
            flush: get("flush"),
            apply: get("apply"),
            timeout: get("timeout"),
            degrade: get("degrade"),
            budget: get("budget"),
        }
    }

    #[test]
    fn what_was_typed_becomes_rules() {
        assert_eq!(settings(&[]).rules().unwrap(), Rules::default());
        let typed =
            [("flush", "ANY 1 (a, b)"), ("timeout", "10s"), ("degrade", "local"), ("budget", "60s per 1d")];
        let budget = Budget { time: Duration::from_secs(60), per: Duration::from_secs(86_400) };
        let lapse = Lapse { timeout: Duration::from_secs(10), to: Expression::local(), budget: Some(budget) };
        let flush = "ANY 1 (a, b)".parse().unwrap();
        let expected = Rules { flush, lapse: Some(lapse), ..Rules::default() };
        assert_eq!(settings(&typed).rules().unwrap(), expected);
        assert_eq!(settings(&[("timeout", "0")]).rules().unwrap(), Rules::default());
    }

    #[test]
    fn mistakes_are_named() {
        let check = |pairs: &[(&str, &str)], expected: &str| {
            assert_eq!(settings(pairs).rules().unwrap_err().to_string(), expected);
        };
        check(
            &[("flush", "ANY 2 (a)")],
            "invalid value for --ack-flush: 2 of 1: so many are not named, it could never be fulfilled at character 5: ANY 2 (a)",
        );
        check(
            &[("timeout", "soon"), ("degrade", "local")],
            "invalid value for --ack-timeout: invalid time \"soon\": expected a number with ms, s, min, h or d",
        );
        check(
            &[("timeout", "1s")],
            "invalid value for --ack-timeout: needs --ack-degrade, which says who is asked then",
        );
        check(
            &[("degrade", "local")],
            "invalid value for --ack-degrade: needs --ack-timeout, which says when it holds",
        );
        check(
            &[("budget", "1s per 1d")],
            "invalid value for --ack-budget: needs --ack-timeout and --ack-degrade, whose time it limits",
        );
        check(&[("budget", "1d")], "invalid value for --ack-budget: \"1d\" is not like \"60s per 1d\"");
        for bad in ["0s per 1d", "2d per 1d"] {
            check(
                &[("budget", bad)],
                &format!("invalid value for --ack-budget: \"{bad}\" is no part of a longer time"),
            );
        }
    }

    #[test]
    fn what_will_surprise_is_said() {
        let check = |pairs: &[(&str, &str)], expected: &[&str]| {
            let warnings = ack_warnings(&settings(pairs).rules().unwrap());
            assert_eq!(warnings.len(), expected.len(), "{warnings:?}");
            for (warning, part) in warnings.iter().zip(expected) {
                assert!(warning.contains(part), "{warning}");
            }
        };
        check(&[], &[]);
        check(&[("flush", "ANY 1 (a, b)"), ("apply", "connected")], &[]);
        check(&[("flush", "ALL (a)")], &["flush = ALL (a) waits for a alone: while it is away, or slow"]);
        check(
            &[("apply", "FIRST 1 (a)")],
            &["a query there holds up its replay, commits with synchronous_commit = remote_apply"],
        );
        check(
            &[("flush", "ALL (a)"), ("timeout", "1s"), ("degrade", "local")],
            &["or slow, commits with synchronous_commit = on wait for 1s, and then flush = local holds"],
        );
        check(&[("apply", "local")], &["wait for no standby"]);
    }
}
