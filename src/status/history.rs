//! What the relay was in the last hours, in memory: numbers of a [`Status`], each ten seconds, for who draws them.
//!
//! ```text
//! Status::now ──each 10 s──> Sample: numbers by kind and name ──> Series: 360 × 10 s, 720 × 1 min ──> JSON since a number
//! ```
//!
//! It is bounded: so many kinds, so many names of each, so many numbers of each. Samples are counted by a clock that nobody sets, so
//! what was missed (the process had no processor, the machine slept) is a gap, and not a shift.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::now::Sources;
use super::value::{ArchiveStatus, ConsumerStatus, Status};
use crate::moment::{Clock, Past, since_boot};

/// How often a sample is taken.
const EVERY: Duration = Duration::from_secs(10);
/// Samples that are kept as they are: an hour.
const FINE: usize = 360;
/// Samples that are put together for the hours before.
const TOGETHER: u64 = 6;
/// So many of these are kept: twelve hours.
const COARSE: usize = 720;
/// Of each kind that has names, so many of them.
const NAMES: usize = 32;
/// Archive targets.
const TARGETS: usize = 16;
/// A name is not longer than this, bytes.
const LONGEST_NAME: usize = 128;

/// How one number is made of several.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fold {
    /// A lag that came and went is seen.
    Most,
    /// What there is little of is seen.
    Least,
    /// Rates.
    Mean,
}

/// A kind of number.
#[derive(Debug)]
struct Kind {
    /// What it is called in JSON.
    what: &'static str,
    fold: Fold,
    /// How many names there may be.
    names: usize,
}

const fn kind(what: &'static str, fold: Fold, names: usize) -> Kind {
    Kind { what, fold, names }
}

/// All there are.
const KINDS: [Kind; 18] = [
    kind("received_bytes_per_second", Fold::Mean, 1),
    kind("sent_bytes_per_second", Fold::Mean, 1),
    kind("written_bytes_per_second", Fold::Mean, 1),
    kind("unreceived_bytes", Fold::Most, 1),
    kind("unflushed_bytes", Fold::Most, 1),
    kind("unflushed_seconds", Fold::Most, 1),
    kind("sync_seconds", Fold::Mean, 1),
    kind("disk_free_bytes", Fold::Least, 1),
    kind("wal_directory_bytes", Fold::Most, 1),
    kind("consumers", Fold::Least, 1),
    kind("most_consumer_lag_bytes", Fold::Most, 1),
    kind("most_consumer_lag_seconds", Fold::Most, 1),
    kind("most_consumer_replay_lag_seconds", Fold::Most, 1),
    kind("consumer_lag_bytes", Fold::Most, NAMES),
    kind("consumer_lag_seconds", Fold::Most, NAMES),
    kind("consumer_replay_lag_seconds", Fold::Most, NAMES),
    kind("slot_held_bytes", Fold::Most, NAMES),
    kind("archive_at_risk_bytes", Fold::Most, TARGETS),
];

/// The kind that is called so.
fn number_of(what: &str) -> usize {
    KINDS.iter().position(|kind| kind.what == what).expect("it is one of the list")
}

/// What was seen at one moment, by kind and name.
type Sample = BTreeMap<(usize, String), f64>;

/// The last hours of a relay.
#[derive(Debug)]
pub struct History {
    sources: Arc<Sources>,
    /// Another process, or program of the same, has another one.
    run: String,
    /// By [`since_boot`].
    begun: Duration,
    state: Mutex<State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    series: BTreeMap<(usize, String), Series>,
    /// The number of the newest sample; the first one is 1.
    newest: u64,
    at: Option<Past>,
    /// Counters at the newest sample.
    before: Option<(Duration, Totals)>,
    /// Names for which there was no room at the newest sample.
    left_out: u64,
}

/// What rates are made of.
#[derive(Clone, Copy, Debug)]
struct Totals {
    received: u64,
    sent: u64,
    written: Option<u64>,
    syncs: u64,
    sync_seconds: f64,
}

/// The numbers of one kind and name; what is not known is NaN.
#[derive(Clone, Debug)]
struct Series {
    fine: Box<[f32]>,
    coarse: Box<[f32]>,
    /// The newest sample that it was in.
    last: u64,
}

impl History {
    /// Of a relay that has just started.
    pub fn new(sources: Arc<Sources>) -> History {
        // Its keys are random.
        let run = format!("{:016x}", RandomState::new().build_hasher().finish());
        History { sources, run, begun: since_boot(), state: Mutex::default() }
    }

    /// Takes samples until told to stop.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            self.note(&Status::now(&self.sources), since_boot());
        }
    }

    /// Takes one. Another one within the same ten seconds is too many.
    pub(crate) fn note(&self, status: &Status, now: Duration) {
        let number = 1 + (now.saturating_sub(self.begun).as_millis() / EVERY.as_millis()) as u64;
        let mut state = self.lock();
        if number <= state.newest {
            return;
        }
        let totals = Totals::of(status);
        let mut sample = numbers(status);
        if let Some((then, before)) = state.before {
            let seconds = now.saturating_sub(then).as_secs_f64();
            sample.extend(
                totals.rates(before, seconds).map(|(what, rate)| ((number_of(what), String::new()), rate)),
            );
        }
        state.before = Some((now, totals));
        state.at = Some(Past::now());
        state.take(number, sample);
    }

    /// All numbers that are newer than that of the sample `since`, as JSON; everything for 0. Waits for nothing, but takes some
    /// milliseconds of a processor where there is much.
    ///
    /// `samples` of `resolution` are `seconds` apart, oldest first, the last one is that of `number`; what is not known is null.
    pub fn json(&self, since: u64) -> String {
        // Some hundred kB: who takes a sample does not wait until they are written out.
        let state = self.lock().clone();
        let (clock, newest) = (Clock::now(), state.newest);
        let at = state.at.map_or(clock.at(), |past| clock.moment(past));
        let [run, at] = [serde_json::json!(self.run), serde_json::json!(at)];
        let since = since.min(newest);
        // The minute that was not over at that sample is told again.
        let minutes = minute_of(newest) - since / TOGETHER;
        let resolutions = [
            state.resolution(EVERY.as_secs(), newest, newest - since, |series| &series.fine),
            state.resolution(EVERY.as_secs() * TOGETHER, minute_of(newest), minutes, |series| &series.coarse),
        ];
        let (left_out, resolutions) = (state.left_out, resolutions.join(","));
        format!(
            "{{\"run\":{run},\"at\":{at},\"number\":{newest},\"left_out\":{left_out},\"resolutions\":[{resolutions}]}}"
        )
    }

    /// For a moment: nothing is waited for under it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the sample of this number lies in a ring; numbers begin with 1.
fn place_of(number: u64, kept: usize) -> usize {
    (number % kept as u64) as usize
}

/// The number of the minute that a sample is in.
fn minute_of(number: u64) -> u64 {
    number.div_ceil(TOGETHER)
}

impl State {
    /// The newest samples of all series, as JSON.
    fn resolution(
        &self,
        seconds: u64,
        newest: u64,
        wanted: u64,
        samples: impl Fn(&Series) -> &[f32],
    ) -> String {
        let mut count = 0;
        let mut out = String::new();
        for (key, series) in &self.series {
            let (samples, separator) = (samples(series), if out.is_empty() { "" } else { "," });
            count = wanted.min(newest).min(samples.len() as u64);
            let numbers = (newest + 1 - count)..=newest;
            let (what, name) = (KINDS[key.0].what, serde_json::Value::from(key.1.as_str()));
            // A String takes everything.
            let _ = write!(out, "{separator}{{\"what\":\"{what}\",\"name\":{name},\"samples\":[");
            let mut separator = "";
            for value in numbers.map(|number| samples[place_of(number, samples.len())]) {
                let _ = match value.is_finite() {
                    true => write!(out, "{separator}{value}"),
                    false => write!(out, "{separator}null"),
                };
                separator = ",";
            }
            out.push_str("]}");
        }
        format!("{{\"seconds\":{seconds},\"number\":{newest},\"count\":{count},\"series\":[{out}]}}")
    }

    fn take(&mut self, number: u64, sample: Sample) {
        let before = std::mem::replace(&mut self.newest, number);
        // What nobody has been for longer than anything is kept.
        let oldest = number.saturating_sub(TOGETHER * COARSE as u64);
        self.series.retain(|_, series| series.last > oldest);
        for series in self.series.values_mut() {
            series.forget(before, number);
        }
        self.left_out = 0;
        for ((kind, name), value) in sample {
            match self.room_for(kind, &name, number) {
                Some(series) => series.note(number, value, KINDS[kind].fold),
                None => self.left_out += 1,
            }
        }
    }

    /// The series of this name; one for a new one takes the place of that which is gone for longest.
    fn room_for(&mut self, kind: usize, name: &str, number: u64) -> Option<&mut Series> {
        let key = (kind, name.to_owned());
        if !self.series.contains_key(&key) {
            let named = || self.series.iter().filter(|((other, _), _)| *other == kind);
            if named().count() >= KINDS[kind].names {
                let gone = named().filter(|(_, series)| series.last + 1 < number);
                let gone = gone.min_by_key(|(_, series)| series.last).map(|(key, _)| key.clone())?;
                self.series.remove(&gone);
            }
            self.series.insert(key.clone(), Series::new());
        }
        self.series.get_mut(&key)
    }
}

impl Series {
    fn new() -> Series {
        Series { fine: vec![f32::NAN; FINE].into(), coarse: vec![f32::NAN; COARSE].into(), last: 0 }
    }

    /// Samples up to `number` take the places of the oldest; whoever is in them says so then.
    fn forget(&mut self, before: u64, number: u64) {
        for (samples, from, to) in
            [(&mut self.fine, before, number), (&mut self.coarse, minute_of(before), minute_of(number))]
        {
            let kept = samples.len();
            let from = from.max(to.saturating_sub(kept as u64));
            (from + 1..=to).for_each(|number| samples[place_of(number, kept)] = f32::NAN);
        }
    }

    fn note(&mut self, number: u64, value: f64, fold: Fold) {
        self.last = number;
        self.fine[place_of(number, FINE)] = value as f32;
        let minute = minute_of(number);
        let of_minute =
            ((minute - 1) * TOGETHER + 1..=number).map(|number| self.fine[place_of(number, FINE)]);
        let of_minute = of_minute.filter(|value| value.is_finite());
        let (count, sum) =
            of_minute.clone().fold((0.0, 0.0), |(count, sum), value| (count + 1.0, sum + value));
        self.coarse[place_of(minute, COARSE)] = match fold {
            Fold::Most => of_minute.fold(f32::NEG_INFINITY, f32::max),
            Fold::Least => of_minute.fold(f32::INFINITY, f32::min),
            Fold::Mean => sum / count,
        };
    }
}

impl Totals {
    fn of(status: &Status) -> Totals {
        let counts = &status.counts;
        Totals {
            received: counts.received_bytes,
            sent: counts.sent_bytes,
            written: status.relay.write_lsn.map(|lsn| lsn.as_u64()),
            syncs: counts.syncs.counts.iter().sum(),
            sync_seconds: counts.syncs.total_seconds,
        }
    }

    fn rates(self, before: Totals, seconds: f64) -> impl Iterator<Item = (&'static str, f64)> {
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        let written = self.written.zip(before.written).map(|(now, then)| rate(now, then));
        let syncs = self.syncs.saturating_sub(before.syncs);
        let sync = (syncs > 0).then(|| (self.sync_seconds - before.sync_seconds).max(0.0) / syncs as f64);
        [
            ("received_bytes_per_second", Some(rate(self.received, before.received))),
            ("sent_bytes_per_second", Some(rate(self.sent, before.sent))),
            ("written_bytes_per_second", written),
            ("sync_seconds", sync),
        ]
        .into_iter()
        .filter_map(|(what, rate)| Some((what, rate?)))
    }
}

/// What can be read from one value. Of who has the same name, the one that is farthest behind counts.
fn numbers(status: &Status) -> Sample {
    let mut sample = Sample::new();
    let mut note = |what: &str, name: &str, value: Option<f64>| {
        let Some(value) = value else { return };
        let most = sample.entry((number_of(what), cut(name))).or_insert(value);
        *most = most.max(value);
    };
    let (upstream, disk) = (&status.upstream, &status.disk);
    let seen = |bytes: u64| disk.looked_at.map(|_| bytes as f64);
    note("unreceived_bytes", "", upstream.unreceived_bytes.map(|bytes| bytes as f64));
    note("unflushed_bytes", "", Some(upstream.unflushed_bytes as f64));
    note("unflushed_seconds", "", Some(upstream.unflushed_seconds));
    note("disk_free_bytes", "", seen(disk.free_bytes));
    note("wal_directory_bytes", "", seen(disk.wal_bytes));
    note("consumers", "", Some(status.consumers.len() as f64));
    for consumer in &status.consumers {
        let ConsumerStatus { application_name, replay, .. } = consumer;
        let safe = consumer.safe();
        // The worst is seen, also where there are more than can have numbers of their own.
        for (most, name) in [("most_", ""), ("", application_name)] {
            note(&format!("{most}consumer_lag_bytes"), name, safe.map(|it| it.lag_bytes as f64));
            note(&format!("{most}consumer_lag_seconds"), name, safe.map(|it| it.lag_seconds));
            note(&format!("{most}consumer_replay_lag_seconds"), name, replay.map(|it| it.lag_seconds));
        }
    }
    // Temporary ones have a name for each connection.
    for slot in status.slots.iter().filter(|slot| !slot.temporary) {
        note("slot_held_bytes", &slot.name, Some(slot.held_bytes as f64));
    }
    for ArchiveStatus { name, at_risk_bytes, .. } in &status.archive {
        note("archive_at_risk_bytes", name, at_risk_bytes.map(|bytes| bytes as f64));
    }
    sample
}

fn cut(name: &str) -> String {
    let end = (0..=LONGEST_NAME.min(name.len())).rev().find(|at| name.is_char_boundary(*at)).unwrap_or(0);
    name[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::status::tests::Scene;

    fn parsed(history: &History, since: u64) -> Value {
        serde_json::from_str(&history.json(since)).expect("JSON")
    }

    /// The samples of one series.
    fn samples(told: &Value, resolution: usize, what: &str, name: &str) -> Vec<Option<f64>> {
        let series = told["resolutions"][resolution]["series"].as_array().expect("a list");
        let found = series.iter().find(|it| it["what"] == what && it["name"] == name);
        let found = found.unwrap_or_else(|| panic!("{what} of {name} in {told}"));
        found["samples"].as_array().expect("a list").iter().map(Value::as_f64).collect()
    }

    fn of(what: &str, name: &str, value: f64) -> Sample {
        Sample::from([((number_of(what), name.to_owned()), value)])
    }

    #[test]
    fn numbers_of_a_relay_come_each_ten_seconds() {
        let mut scene = Scene::new();
        let consumer = scene.consumer(7, "s1");
        let behind = scene.now().relay.write_lsn.expect("it has WAL");
        consumer.start_at(behind);
        let history = History::new(scene.sources.clone());
        let at = |seconds: u64| history.begun + Duration::from_secs(seconds);
        history.note(&scene.now(), at(0));
        let end = scene.more_wal(100_000);
        history.note(&scene.now(), at(4));
        history.note(&scene.now(), at(10));
        history.note(&scene.now(), at(30));
        let told = parsed(&history, 0);
        assert_eq!(told["number"], 4);
        let lag = end.since(behind) as f64;
        assert_eq!(samples(&told, 0, "consumer_lag_bytes", "s1"), [Some(0.0), Some(lag), None, Some(lag)]);
        assert_eq!(samples(&told, 1, "consumer_lag_bytes", "s1"), [Some(lag)]);
        let rates = samples(&told, 0, "written_bytes_per_second", "");
        assert_eq!(rates, [None, Some(lag / 10.0), None, Some(0.0)]);
        let told = parsed(&history, 3);
        assert_eq!(samples(&told, 0, "consumer_lag_bytes", "s1"), [Some(lag)]);
        assert_eq!(samples(&told, 1, "consumer_lag_bytes", "s1"), [Some(lag)], "its minute goes on");
        let told = parsed(&history, 4);
        assert_eq!(samples(&told, 0, "consumer_lag_bytes", "s1"), [], "nothing new");
        assert_eq!(samples(&parsed(&history, 99), 0, "consumer_lag_bytes", "s1"), [], "never as many");
    }

    #[test]
    fn a_machine_that_slept_leaves_a_gap() {
        let scene = Scene::new();
        let consumer = scene.consumer(7, "s1");
        consumer.start_at(scene.now().relay.write_lsn.expect("it has WAL"));
        let history = History::new(scene.sources.clone());
        let asleep = Duration::from_secs(600);
        history.note(&scene.now(), history.begun);
        history.note(&scene.now(), history.begun + asleep);
        let told = parsed(&history, 0);
        assert_eq!(told["number"], 61);
        let lags = samples(&told, 0, "consumer_lag_bytes", "s1");
        assert_eq!((lags[0], lags[60]), (Some(0.0), Some(0.0)));
        assert_eq!(lags.iter().flatten().count(), 2, "nobody has measured between");
    }

    #[test]
    fn minutes_keep_what_hours_of_samples_forget() {
        let mut state = State::default();
        for number in 1..=10_000 {
            let lag = if number == 7000 { 50.0 } else { 1.0 };
            state.take(number, of("consumer_lag_seconds", "s1", lag));
        }
        let series = state.series.values().next().expect("one");
        assert!(series.fine.iter().all(|value| *value == 1.0));
        assert_eq!(series.coarse.iter().filter(|value| **value == 50.0).count(), 1);
        assert_eq!(series.coarse[place_of(minute_of(7000), COARSE)], 50.0);
    }

    #[test]
    fn rates_are_means_and_free_space_is_the_least() {
        let mut state = State::default();
        for number in 7..=12 {
            let mut sample = of("sent_bytes_per_second", "", number as f64);
            sample.extend(of("disk_free_bytes", "", number as f64));
            state.take(number, sample);
        }
        let minute = |what| state.series[&(number_of(what), String::new())].coarse[place_of(2, COARSE)];
        assert_eq!((minute("sent_bytes_per_second"), minute("disk_free_bytes")), (9.5, 7.0));
    }

    #[test]
    fn names_have_a_limit_and_leave_when_they_are_gone_for_longer_than_the_ring() {
        let mut state = State::default();
        let all = |names: std::ops::Range<usize>| -> Sample {
            names.map(|n| ((number_of("consumer_lag_seconds"), format!("s{n:04}")), 1.0)).collect()
        };
        state.take(1, all(0..1000));
        assert_eq!((state.series.len(), state.left_out), (NAMES, 1000 - NAMES as u64));
        let named = |state: &State, name: &str| state.series.keys().any(|(_, other)| other == name);
        assert!(named(&state, "s0000"));
        // Others come for those that are gone.
        state.take(2, all(0..10));
        state.take(3, all(500..501));
        assert!(!named(&state, "s0010") && named(&state, "s0500"));
        assert_eq!((state.series.len(), state.left_out), (NAMES, 0));
        let end = 3 + TOGETHER * COARSE as u64;
        state.take(end - 1, Sample::new());
        assert!(named(&state, "s0500"));
        state.take(end, Sample::new());
        assert!(state.series.is_empty(), "{:?}", state.series.keys());
    }

    #[test]
    fn all_of_it_takes_less_than_a_megabyte_and_a_bit() {
        let most: usize = KINDS.iter().map(|kind| kind.names).sum();
        assert!(most * (FINE + COARSE) * size_of::<f32>() < 1 << 20, "{most}");
    }

    #[test]
    fn a_name_is_text_in_json_whatever_it_is() {
        let scene = Scene::new();
        let name = "\"</script>\\\n<img src=x onerror=alert(1)>";
        let consumer = scene.consumer(7, name);
        consumer.start_at(scene.now().relay.write_lsn.expect("it has WAL"));
        let history = History::new(scene.sources.clone());
        history.note(&scene.now(), history.begun);
        assert_eq!(samples(&parsed(&history, 0), 0, "consumer_lag_bytes", name), [Some(0.0)]);
        assert_eq!(cut(&"é".repeat(100)).len(), LONGEST_NAME);
    }
}
