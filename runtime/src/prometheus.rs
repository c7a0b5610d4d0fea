//! What a container uses, in Prometheus's text format (version 0.0.4), in base units: seconds and bytes.

use std::collections::BTreeMap;
use std::fmt::Write;

use coracle_isolator::{Pressure, Usage};
use coracle_isolator_metrics::Family;

/// What follows the metric's name, labels, and the value.
type Sample = (String, String, f64);

/// A metric: its kind and help, and its samples.
struct Metric {
    kind: String,
    help: String,
    samples: Vec<Sample>,
}

/// Metrics of any number of containers, each told once.
#[derive(Default)]
pub struct Metrics {
    labels: String,
    all: BTreeMap<String, Metric>,
}

const NANOSECONDS: f64 = 1e9;
const MICROSECONDS: f64 = 1e6;

/// The usage of container `id`.
pub fn text(id: &str, usage: &Usage) -> String {
    let mut metrics = Metrics::default();
    metrics.of(id, None).usage(usage);
    metrics.text()
}

fn cpu(metrics: &mut Metrics, usage: &Usage) {
    let Some(cpu) = &usage.cpu else { return };
    for (mode, time) in [("user", cpu.user), ("system", cpu.system)] {
        let help = "processor time by mode";
        metrics.counter("container_cpu_mode_seconds_total", help, ("mode", mode), time as f64 / NANOSECONDS);
    }
    for (name, help, value) in [
        ("container_cpu_seconds_total", "processor time", cpu.total as f64 / NANOSECONDS),
        ("container_cpu_periods_total", "periods with a quota", cpu.periods as f64),
        (
            "container_cpu_throttled_periods_total",
            "periods whose quota was used up",
            cpu.throttled_periods as f64,
        ),
        (
            "container_cpu_throttled_seconds_total",
            "waiting for the next period",
            cpu.throttled_time as f64 / NANOSECONDS,
        ),
    ] {
        metrics.counter(name, help, NONE, value);
    }
    pressure(metrics, "cpu", cpu.pressure);
}

fn memory(metrics: &mut Metrics, usage: &Usage) {
    let Some(memory) = &usage.memory else { return };
    for (name, help, value) in [
        ("container_memory_usage_bytes", "memory in use, page cache included", Some(memory.usage)),
        ("container_memory_peak_bytes", "the most that ever was in use", memory.peak),
        ("container_memory_limit_bytes", "the limit; absent where there is none", memory.limit),
        ("container_memory_swap_bytes", "swap space in use", memory.swap),
        ("container_memory_anonymous_bytes", "anonymous memory", Some(memory.rss)),
        ("container_memory_cache_bytes", "page cache", Some(memory.cache)),
        ("container_memory_inactive_file_bytes", "inactive page cache", Some(memory.inactive_file)),
    ] {
        if let Some(value) = value {
            metrics.gauge(name, help, NONE, value as f64);
        }
    }
    for (name, help, value) in [
        ("container_memory_limit_hits_total", "times that the limit was hit", memory.limit_hits),
        ("container_memory_oom_kills_total", "processes killed for want of memory", memory.oom_kills),
    ] {
        metrics.counter(name, help, NONE, value as f64);
    }
    pressure(metrics, "memory", memory.pressure);
}

fn devices(metrics: &mut Metrics, usage: &Usage) {
    if let Some(pids) = usage.pids {
        metrics.gauge("container_tasks", "processes and threads", NONE, pids.current as f64);
        if let Some(limit) = pids.limit {
            metrics.gauge("container_tasks_limit", "how many there may be", NONE, limit as f64);
        }
    }
    for (device, io) in &usage.io {
        for (name, help, value) in [
            ("container_io_read_bytes_total", "bytes read", io.read_bytes),
            ("container_io_write_bytes_total", "bytes written", io.write_bytes),
            ("container_io_reads_total", "read operations", io.reads),
            ("container_io_writes_total", "write operations", io.writes),
        ] {
            metrics.counter(name, help, ("device", device), value as f64);
        }
    }
    for (size, pages) in &usage.hugetlb {
        metrics.gauge(
            "container_hugetlb_usage_bytes",
            "huge pages in use",
            ("size", size),
            pages.usage as f64,
        );
    }
    pressure(metrics, "io", usage.io_pressure);
}

fn network(metrics: &mut Metrics, usage: &Usage) {
    for (interface, network) in &usage.network {
        for (name, help, value) in [
            ("container_network_receive_bytes_total", "bytes received", network.receive_bytes),
            ("container_network_receive_packets_total", "packets received", network.receive_packets),
            ("container_network_receive_errors_total", "packets that came broken", network.receive_errors),
            (
                "container_network_receive_dropped_total",
                "packets dropped on arrival",
                network.receive_dropped,
            ),
            ("container_network_transmit_bytes_total", "bytes sent", network.transmit_bytes),
            ("container_network_transmit_packets_total", "packets sent", network.transmit_packets),
            (
                "container_network_transmit_errors_total",
                "packets that could not be sent",
                network.transmit_errors,
            ),
            (
                "container_network_transmit_dropped_total",
                "packets dropped on departure",
                network.transmit_dropped,
            ),
        ] {
            metrics.counter(name, help, ("interface", interface), value as f64);
        }
    }
}

fn pressure(metrics: &mut Metrics, resource: &str, pressure: Option<Pressure>) {
    let Some(pressure) = pressure else { return };
    for (name, help, stall) in [
        ("container_pressure_waiting_seconds_total", "some tasks waited for the resource", pressure.some),
        ("container_pressure_stalled_seconds_total", "all tasks waited for the resource", pressure.full),
    ] {
        metrics.counter(name, help, ("resource", resource), stall.total as f64 / MICROSECONDS);
    }
}

/// A sample without a label of its own.
pub const NONE: (&str, &str) = ("", "");

impl Metrics {
    /// From here on it is told of the container `id`, one of the pod `pod` where it is one.
    pub fn of(&mut self, id: &str, pod: Option<&str>) -> &mut Self {
        self.labels = label("id", id);
        if let Some(pod) = pod {
            let _ = write!(self.labels, ",{}", label("pod", pod));
        }
        self
    }

    /// From here on it is told of the whole host.
    pub fn of_host(&mut self) -> &mut Self {
        self.labels.clear();
        self
    }

    /// What the container uses.
    pub fn usage(&mut self, usage: &Usage) {
        cpu(self, usage);
        memory(self, usage);
        devices(self, usage);
        network(self, usage);
        for (name, value) in &usage.other {
            let help = "what an isolator measures beside this";
            self.gauge("container_isolator", help, ("measure", name), *value);
        }
    }

    /// What its programs have told.
    pub fn families(&mut self, families: &[Family]) {
        for family in families {
            let told = (family.kind.as_str(), family.help.as_str());
            for sample in &family.samples {
                let labels: Vec<String> =
                    sample.labels.iter().map(|(name, value)| label(name, value)).collect();
                self.push(&family.name, told, (&sample.suffix, &labels.join(",")), sample.value);
            }
        }
    }

    /// A number that only grows.
    pub fn counter(&mut self, name: &str, help: &str, own: (&str, &str), value: f64) {
        self.push(name, ("counter", help), ("", &own_label(own)), value);
    }

    /// A number.
    pub fn gauge(&mut self, name: &str, help: &str, own: (&str, &str), value: f64) {
        self.push(name, ("gauge", help), ("", &own_label(own)), value);
    }

    /// Programs may give two kinds of metrics one name: then it is of neither.
    fn push(&mut self, name: &str, (kind, help): (&str, &str), (suffix, own): (&str, &str), value: f64) {
        let (kind, help) = (kind.to_owned(), help.to_owned());
        let new = || Metric { kind: kind.clone(), help, samples: Vec::new() };
        let metric = self.all.entry(name.to_owned()).or_insert_with(new);
        if metric.kind != kind {
            "untyped".clone_into(&mut metric.kind);
        }
        let labels: Vec<&str> = [self.labels.as_str(), own].into_iter().filter(|l| !l.is_empty()).collect();
        metric.samples.push((suffix.to_owned(), labels.join(","), value));
    }

    /// All of it, metrics by name. A series that was told more than once has the last value: with two of one, a whole answer is
    /// refused.
    pub fn text(&self) -> String {
        let samples =
            self.all.iter().flat_map(|(name, metric)| metric.samples.iter().map(move |s| (name, s)));
        let mut last: BTreeMap<String, f64> =
            samples.map(|(name, sample)| (series(name, sample), sample.2)).collect();
        let mut text = String::new();
        for (name, metric) in &self.all {
            let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {}", metric.help, metric.kind);
            for sample in &metric.samples {
                if let Some((series, value)) = last.remove_entry(&series(name, sample)) {
                    let _ = writeln!(text, "{series} {value}");
                }
            }
        }
        text
    }
}

/// The series of a sample of the metric `name`.
fn series(name: &str, (suffix, labels, _): &Sample) -> String {
    let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    format!("{name}{suffix}{labels}")
}

fn own_label((name, value): (&str, &str)) -> String {
    if name.is_empty() { String::new() } else { label(name, value) }
}

fn label(name: &str, value: &str) -> String {
    format!("{name}=\"{}\"", escaped(value))
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use coracle_isolator::{CpuUsage, NetworkUsage};

    use super::*;

    #[test]
    fn samples_have_base_units_and_labels_and_each_metric_is_told_once() {
        let network = NetworkUsage { receive_bytes: 7, ..NetworkUsage::default() };
        let usage = Usage {
            cpu: Some(CpuUsage { total: 1_500_000_000, ..CpuUsage::default() }),
            network: [("eth0".to_owned(), network), ("odd\"name".to_owned(), network)].into(),
            ..Usage::default()
        };
        let text = text("web", &usage);
        assert!(text.contains("container_cpu_seconds_total{id=\"web\"} 1.5\n"), "{text}");
        let received = "container_network_receive_bytes_total{id=\"web\",interface=";
        assert!(text.contains(&format!("{received}\"eth0\"}} 7\n")), "{text}");
        assert!(text.contains(&format!("{received}\"odd\\\"name\"}} 7\n")), "{text}");
        assert_eq!(text.matches("# TYPE container_network_receive_bytes_total counter").count(), 1);
        assert!(!text.contains("container_memory"), "{text}");
    }

    #[test]
    fn a_series_that_is_told_twice_has_the_last_value() {
        let mut metrics = Metrics::default();
        metrics.of("web", None).counter("jobs", "jobs", NONE, 1.0);
        metrics.gauge("jobs", "jobs", ("state", "done"), 2.0);
        metrics.gauge("jobs", "jobs", NONE, 3.0);
        let told =
            "# HELP jobs jobs\n# TYPE jobs untyped\njobs{id=\"web\"} 3\njobs{id=\"web\",state=\"done\"} 2\n";
        assert_eq!(metrics.text(), told);
    }
}
