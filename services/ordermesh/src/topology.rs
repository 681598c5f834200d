//! `ordermesh topology`: which services call each other, how often, how fast, with how many failures, and which
//! instance is slow.
//!
//! # Layout
//! - [`graph`]: the services and their calls, from the snapshots of all instances
//! - `render`: the graph as text, JSON, Mermaid or DOT

pub(crate) mod graph;
pub(crate) mod render;

use clap::{Args, ValueEnum};

use crate::error::{Error, describe};
use crate::instances::Instances;
use crate::json;
use crate::out;
use crate::system::Location;
use crate::topology::graph::{Graph, WindowLength};

#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Which calls: those that ended in about the last 10 or 60 seconds
    #[arg(long, value_enum, default_value_t = WindowLength::Long, value_name = "WINDOW")]
    window: WindowLength,
    /// Output format
    #[arg(long, short, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    output: Format,
    #[command(flatten)]
    location: Location,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    /// Tables
    Text,
    /// One object
    Json,
    /// A flowchart for Markdown (https://mermaid.js.org)
    Mermaid,
    /// For Graphviz
    Dot,
}

/// Prints the topology.
///
/// # Errors
/// There is no system, no instance responds, or the output cannot be written.
pub(crate) async fn run(options: Options) -> Result<(), Error> {
    let instances = Instances::find(options.location).await?;
    let snapshots = instances.snapshots().await;
    for (instance, snapshot) in &snapshots {
        if let Err(status) = snapshot {
            out::complain(format_args!("{} at {}: {}", instance.service, instance.address, describe(status)));
        }
    }
    let graph = Graph::of(&snapshots, options.window);
    match options.output {
        Format::Text => out::text(render::text(&graph)),
        Format::Json => json::print(&graph),
        Format::Mermaid => out::text(render::mermaid(&graph)),
        Format::Dot => out::text(render::dot(&graph)),
    }
}
