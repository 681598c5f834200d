//! Attacks on a running system, and how a well-behaved client is served before, during and after them: `cargo bench -p
//! ordermesh --bench attacks`. `ORDERMESH=/path/to/ordermesh` attacks another release's program, `-- --only NAME` runs
//! one attack, `-- --seconds 3` shortens the phases, `-- --production` applies the production overlay's settings.
//!
//! Each attack gets a dedicated system (`system`) and comes from 127.0.0.2 (`attacks`); the well-behaved client uses
//! 127.0.0.1 (`regular`). Linux only.

#[path = "../../tests/supervisor/attacker.rs"]
mod attacker;
mod attacks;
mod regular;
mod system;

use std::process::ExitCode;
use std::time::Duration;

use crate::attacks::{ATTACKS, Attack};
use crate::regular::{Phase, phase};
use crate::system::System;

/// Time for the client to connect, for an attack to take effect, and for its effects to end.
const PAUSE: Duration = Duration::from_secs(2);

/// The value after a flag.
fn flag(name: &str) -> Option<String> {
    std::env::args().skip_while(|arg| arg != name).nth(1)
}

fn main() -> ExitCode {
    let program = std::env::var("ORDERMESH").unwrap_or_else(|_| env!("CARGO_BIN_EXE_ordermesh").to_owned());
    let seconds = flag("--seconds").map_or(10, |seconds| seconds.parse().expect("a number of seconds"));
    let production = std::env::args().any(|arg| arg == "--production");
    let only = flag("--only");
    let chosen = ATTACKS.iter().filter(|attack| only.as_ref().is_none_or(|only| attack.name.contains(only.as_str())));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    println!(
        "{program}, {seconds} s a phase; served % of calls, p50 / p99 in ms; peak memory of the attacked process in MiB\n"
    );
    println!(
        "{:<22} {:<14} {:>20} {:>20} {:>20} {:>6}",
        "attack", "client's call", "before", "during", "after", "peak"
    );
    let mut count = 0;
    for attack in chosen {
        let arguments = if production { system::PRODUCTION } else { &[] };
        runtime.block_on(run(attack, &program, arguments, Duration::from_secs(seconds)));
        count += 1;
    }
    if count > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run(attack: &Attack, program: &str, arguments: &[&str], length: Duration) {
    let system = System::start(program, arguments, attack.fill).await;
    let caller = system.caller(attack.regular).await;
    tokio::time::sleep(PAUSE).await;
    let before = phase(&caller, length).await;
    let attacking = tokio::spawn((attack.run)(system.target()));
    tokio::time::sleep(PAUSE).await;
    let during = phase(&caller, length).await;
    assert!(!attacking.is_finished(), "{}: the attack ended by itself", attack.name);
    attacking.abort();
    tokio::time::sleep(PAUSE).await;
    let after = phase(&caller, length).await;
    let peak = system.peak_mib(attack.service);
    let cell = |phase: &Phase| format!("{:>4.0} % {:>5} /{:>6}", phase.served_percent, phase.p50_ms, phase.p99_ms);
    let name = format!("{:?}", attack.regular);
    println!("{:<22} {name:<14} {} {} {} {peak:>6}", attack.name, cell(&before), cell(&during), cell(&after));
}
