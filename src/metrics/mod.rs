//! A relay's [`Status`] as OpenMetrics.
//!
//! Each metric is an entry of [`METRICS`]: its name, what it means, and how it is read from the value. So there is one list
//! that the exposition, the documents and the dashboards are compared with. No label takes values that others choose without
//! a limit: of consumers and slots, the first [`MOST_NAMED`] names have rows of their own, the rest share one.

mod list;
mod named;
#[cfg(test)]
mod tests;

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};

use crate::status::{Starting, Status};

pub use list::METRICS;
pub use named::MOST_NAMED;

/// What an answer with [`exposition`] is called in HTTP.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// What all names begin with.
const PREFIX: &str = "walrelay";

/// What kind of number it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It only rises, until the relay is started again.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Always 1: what there is to say is in the labels.
    Info,
    /// How often something fell into which class of durations.
    Histogram,
}

/// In which unit it is, which ends its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Measure {
    /// It counts things.
    None,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
}

/// A metric.
#[derive(Debug)]
pub struct Metric {
    /// Without what it begins and ends with.
    name: &'static str,
    measure: Measure,
    kind: Kind,
    /// What it means, one sentence without its full stop.
    help: &'static str,
    read: fn(&Status, &mut Samples),
}

impl Metric {
    /// The name of its samples, as queries have it; of a histogram the part that all have in common.
    pub fn sample_name(&self) -> String {
        let unit = match self.measure {
            Measure::None => "",
            Measure::Bytes => "_bytes",
            Measure::Seconds => "_seconds",
        };
        let end = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        };
        format!("{PREFIX}_{}{unit}{end}", self.name)
    }

    fn samples(&self, status: &Status) -> Samples {
        let mut samples = Samples::default();
        (self.read)(status, &mut samples);
        samples
    }

    /// What it means.
    pub fn help(&self) -> &'static str {
        self.help
    }
}

/// A label and its value.
type Label = (&'static str, String);

/// What a metric has now.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<(Vec<Label>, Number)>);

#[derive(Debug)]
enum Number {
    Whole(u64),
    Real(f64),
    Durations { sum: f64, classes: Vec<(f64, u64)> },
}

impl Samples {
    fn whole(&mut self, labels: Vec<Label>, number: u64) {
        self.0.push((labels, Number::Whole(number)));
    }

    fn real(&mut self, labels: Vec<Label>, number: f64) {
        self.0.push((labels, Number::Real(number)));
    }
}

/// All metrics of a relay, as Prometheus reads them.
pub fn exposition(status: &Status) -> String {
    expose(METRICS.iter().map(|metric| (metric, metric.samples(status))).collect())
}

/// What is known of a relay whose start is not over: the same names, and few of them.
pub fn exposition_at_start(starting: &Starting) -> String {
    expose(METRICS.iter().filter_map(|metric| Some((metric, list::at_start(metric, starting)?))).collect())
}

fn expose(scraped: Vec<(&'static Metric, Samples)>) -> String {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Scrape(scraped)));
    let mut text = String::new();
    // A String takes everything.
    let _ = text::encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Scrape(Vec<(&'static Metric, Samples)>);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (metric, samples) in self.0.iter().filter(|(_, samples)| !samples.0.is_empty()) {
            let unit = match metric.measure {
                Measure::None => None,
                Measure::Bytes => Some(Unit::Bytes),
                Measure::Seconds => Some(Unit::Seconds),
            };
            let kind = match metric.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Info => MetricType::Info,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut family = encoder.encode_descriptor(metric.name, metric.help, unit.as_ref(), kind)?;
            for (labels, number) in &samples.0 {
                match (metric.kind, labels.is_empty()) {
                    (Kind::Info, _) => family.encode_info(labels)?,
                    (kind, true) => encode(&mut family, kind, number)?,
                    (kind, false) => encode(&mut family.encode_family(labels)?, kind, number)?,
                }
            }
        }
        Ok(())
    }
}

/// No sample has one.
const NO_EXEMPLAR: Option<&Exemplar<Vec<Label>, f64>> = None;

fn encode(encoder: &mut MetricEncoder<'_>, kind: Kind, number: &Number) -> fmt::Result {
    match (kind, number) {
        (Kind::Counter, Number::Whole(number)) => encoder.encode_counter(number, NO_EXEMPLAR),
        (Kind::Counter, Number::Real(number)) => encoder.encode_counter(number, NO_EXEMPLAR),
        (_, Number::Whole(number)) => encoder.encode_gauge(number),
        (_, Number::Real(number)) => encoder.encode_gauge(number),
        (_, Number::Durations { sum, classes }) => {
            let count = classes.iter().map(|(_, count)| count).sum();
            encoder.encode_histogram::<Vec<Label>>(*sum, count, classes, None)
        }
    }
}
