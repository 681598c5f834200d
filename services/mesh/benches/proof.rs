//! Shows with real processes that among many instances a bad one does not matter: `cargo bench -p mesh --bench proof`
//! (`-- --quick` for less than a minute, `-- --only kill` for one scenario, `-- --rate 400` for another load).
//!
//! The program starts itself as the instances of a small service (`instance`), makes them slow, failing, crashed,
//! stopped or new (`world`), and calls them continuously through one `mesh::client` (`load`). The criteria are in
//! `scenarios`. It exits with 1 when one is not met.

#[path = "proof/instance.rs"]
mod instance;
#[path = "proof/load.rs"]
mod load;
#[path = "proof/report.rs"]
mod report;
#[path = "proof/scenarios.rs"]
mod scenarios;
#[path = "proof/world.rs"]
mod world;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The value after a flag.
fn flag(name: &str) -> Option<String> {
    std::env::args().skip_while(|arg| arg != name).nth(1)
}

fn main() -> ExitCode {
    if let Some(port) = flag(instance::FLAG) {
        instance::serve(port.parse().expect("a port"));
        return ExitCode::SUCCESS;
    }
    let scale = scenarios::Scale {
        is_quick: std::env::args().any(|arg| arg == "--quick"),
        calls_per_second: flag("--rate").map_or(600, |rate| rate.parse().expect("calls per second")),
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let lines = runtime.block_on(scenarios::run(scale, flag("--only").as_deref()));
    report::print(&lines);
    if !lines.is_empty() && lines.iter().all(|line| line.is_kept) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
