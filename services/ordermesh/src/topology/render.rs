//! A graph as text, Mermaid or DOT.

use std::fmt::Write as _;
use std::time::Duration;

use crate::table;
use crate::topology::graph::{Calls, Edge, Graph, InstanceCalls};

/// A latency, for example `1.2 ms`; `-` for zero.
pub(crate) fn latency(duration: Duration) -> String {
    let millis = duration.as_secs_f64() * 1_000.0;
    match millis {
        0.0 => "-".to_owned(),
        ..10.0 => format!("{millis:.1} ms"),
        ..1_000.0 => format!("{millis:.0} ms"),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

/// A share, for example `99.9 %`; never rounded up to 100. `-` without calls.
pub(crate) fn percent(share: Option<f64>) -> String {
    match share {
        None => "-".to_owned(),
        Some(1.0) => "100 %".to_owned(),
        Some(share) => format!("{:.1} %", (share * 1_000.0).floor() / 10.0),
    }
}

/// An instance's name, or its address if it has not responded.
pub(crate) fn name(instance: &InstanceCalls) -> &str {
    if instance.instance.is_empty() { &instance.address } else { &instance.instance }
}

/// What is wrong with an instance; empty if nothing is.
pub(crate) fn problems(instance: &InstanceCalls) -> String {
    let not_connected = (instance.connected == Some(false)).then_some("not connected");
    let breaker = match instance.breaker {
        "open" => Some("breaker open"),
        "half_open" => Some("breaker half-open"),
        _ => None,
    };
    let slow = instance.slow.then_some("SLOW");
    slow.into_iter().chain(not_connected).chain(breaker).collect::<Vec<_>>().join(", ")
}

fn calls(calls: &Calls) -> [String; 4] {
    [format!("{:.1}", calls.per_second), percent(calls.success()), latency(calls.p50()), latency(calls.p99())]
}

/// The rows of an edge: itself, and the instances that it calls.
pub(crate) fn rows(edge: &Edge) -> Vec<[String; 9]> {
    let row = |name: String, at: &Calls, load: String, in_flight: Option<i64>, retries: String, problems: String| {
        let [rate, success, p50, p99] = calls(at);
        [
            name,
            rate,
            success,
            p50,
            p99,
            load,
            in_flight.map_or_else(|| "-".to_owned(), |count| count.to_string()),
            retries,
            problems,
        ]
    };
    let problems_of_all: Vec<_> =
        edge.instances.iter().filter(|instance| !problems(instance).is_empty()).map(name).collect();
    let problem =
        if problems_of_all.is_empty() { String::new() } else { format!("see {}", problems_of_all.join(", ")) };
    let ends = format!("{} → {}", edge.from, edge.to);
    let mut rows = vec![row(ends, &edge.calls, String::new(), edge.in_flight, edge.retries.to_string(), problem)];
    rows.extend(edge.instances.iter().map(|instance| {
        let indented = format!("  {}", name(instance));
        let load = instance.load.map_or_else(|| "-".to_owned(), latency);
        row(indented, &instance.calls, load, instance.in_flight, String::new(), problems(instance))
    }));
    rows
}

/// The titles of [`rows`]. LOAD is what callers choose an instance by: its average response time times the calls in flight plus one.
pub(crate) const TITLES: [&str; 9] = ["FROM → TO", "CALLS/S", "SUCCESS", "P50", "P99", "LOAD", "ACTIVE", "RETRIES", ""];
/// The index of LOAD.
pub(crate) const LOAD: usize = 5;

pub(crate) fn text(graph: &Graph) -> String {
    let titles = ["INSTANCE", "ADDRESS", "STATE", "CALLS/S", "P99", "VERSION"].map(str::to_owned);
    let instances = graph.instances.iter().map(|node| {
        let name = if node.instance.is_empty() { node.service } else { &node.instance };
        let problem = if node.error.is_empty() { &node.version } else { &node.error };
        [
            name.to_owned(),
            node.address.clone(),
            node.state.to_owned(),
            format!("{:.1}", node.calls.per_second),
            latency(node.calls.p99()),
            problem.clone(),
        ]
    });
    let instances = table::text(std::iter::once(titles).chain(instances));
    let edges = table::text(std::iter::once(TITLES.map(str::to_owned)).chain(graph.edges.iter().flat_map(rows)));
    format!("{instances}\n{edges}")
}

/// A label of an edge.
fn label(edge: &Edge) -> String {
    let mut label =
        format!("{:.1}/s {} p99 {}", edge.calls.per_second, percent(edge.calls.success()), latency(edge.calls.p99()));
    for instance in edge.instances.iter().filter(|instance| !problems(instance).is_empty()) {
        // Writing to a string does not fail.
        let _ = write!(label, "; {} {}", name(instance), problems(instance));
    }
    label
}

fn has_problems(edge: &Edge) -> bool {
    edge.instances.iter().any(|instance| !problems(instance).is_empty()) || edge.calls.failures > 0
}

/// A flowchart. Edges with problems are red.
pub(crate) fn mermaid(graph: &Graph) -> String {
    let mut text = "flowchart LR\n".to_owned();
    for (index, edge) in graph.edges.iter().enumerate() {
        let _ = writeln!(text, "  {} -->|\"{}\"| {}", edge.from, label(edge), edge.to);
        if has_problems(edge) {
            let _ = writeln!(text, "  linkStyle {index} stroke:red");
        }
    }
    text
}

/// A directed graph. Edges with problems are red.
pub(crate) fn dot(graph: &Graph) -> String {
    let mut text = "digraph ordermesh {\n  rankdir=LR;\n".to_owned();
    for edge in &graph.edges {
        let colour = if has_problems(edge) { ", color=red" } else { "" };
        let _ = writeln!(text, "  \"{}\" -> \"{}\" [label=\"{}\"{colour}];", edge.from, edge.to, label(edge));
    }
    text.push_str("}\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_and_shares_are_short_and_never_flatter() {
        let millis = |millis| latency(Duration::from_micros(millis));
        assert_eq!(
            [millis(0), millis(640), millis(9_990), millis(212_400), millis(1_250_000)],
            ["-", "0.6 ms", "10.0 ms", "212 ms", "1.2 s"]
        );
        assert_eq!(
            [percent(None), percent(Some(1.0)), percent(Some(0.9999)), percent(Some(0.5))],
            ["-", "100 %", "99.9 %", "50.0 %"]
        );
    }
}
