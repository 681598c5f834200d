//! The cost of the mesh: unary echo of 64 bytes over loopback, in rotated pairs in one run. `cargo bench -p mesh --bench
//! echo` (`-- --rounds 10 --seconds 2` for more; `-- --stacks a,b` for some; `-- --stacks a,b,b=PATH` compares with
//! another build of this benchmark).
//!
//! Each stack has two processes of its own, a server and a client, both running this program: so the CPU time of server
//! and client is measured separately, and each has its own process-wide telemetry. This process starts them, lets one
//! pair work at a time, and is the collector that (c) exports to.
//!
//! # Layout
//! - `stacks`: the server and the client of each stack
//! - `load`: calls, and their durations
//! - `collector`: an OTLP collector that counts
//! - `pair`: a server and a client process

mod collector;
mod load;
mod pair;
mod stacks;

use std::time::Duration;

use collector::Collector;
use load::Round;
use pair::{Pair, Setting};
use stacks::Stack;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MANY: usize = 64;

/// The value after a flag.
fn flag(name: &str) -> Option<String> {
    std::env::args().skip_while(|arg| arg != name).nth(1)
}

fn number(name: &str, default: f64) -> f64 {
    flag(name).map_or(default, |value| value.parse().expect("a number"))
}

#[tokio::main]
async fn main() {
    let stack = |name: &str| flag(name).map(|key| Stack::of(&key).expect("a stack"));
    if let Some(stack) = stack("--serve") {
        return stacks::serve(stack, &Setting::of_child()).await;
    }
    if let Some(stack) = stack("--call") {
        return stacks::call(stack, &Setting::of_child()).await;
    }
    compare().await;
}

/// The results of one stack, by round.
struct Tally {
    pair: Pair,
    rounds: Vec<Round>,
}

async fn compare() {
    let (rounds, time) = (number("--rounds", 5.0) as usize, Duration::from_secs_f64(number("--seconds", 1.0)));
    let certificates = stacks::certificates();
    let collector = Collector::start().await;
    let setting = Setting { collector: collector.url(), certificates: certificates.path().to_owned() };
    let wanted = flag("--stacks").unwrap_or_else(|| "a,a1,b,b1,c,d".to_owned());
    let mut tallies = vec![];
    for key in wanted.split(',') {
        tallies.push(Tally { pair: Pair::start(key, &setting).await, rounds: vec![] });
    }
    println!("{rounds} rounds of {time:?}; load average before: {}", load_average());
    let heads = ["flight", "calls/s", "of first", "server us", "client us", "p50 us", "p99 us"];
    println!("{:<40}{}", "stack", heads.map(|head| format!("{head:>10}")).concat());
    for in_flight in [MANY, 1] {
        tallies.iter_mut().for_each(|tally| tally.rounds.clear());
        // The first round warms up.
        for round in 0..=rounds {
            for step in 0..tallies.len() {
                // Rotated, because the last one would always have the warmest caches and the busiest neighbours.
                let which = (round + step) % tallies.len();
                let tally = &mut tallies[which];
                let did = tally.pair.run(in_flight, time).await;
                if round > 0 {
                    tally.rounds.push(did);
                }
            }
        }
        for tally in &tallies {
            line(tally, &tallies[0], in_flight, time);
        }
    }
    println!("load average after: {}", load_average());
    let mut made = 0;
    for tally in tallies {
        made += tally.pair.stop().await;
    }
    println!("the collector got {} spans of {made}, and metrics {} times", collector.spans(), collector.metrics());
}

fn line(tally: &Tally, first: &Tally, in_flight: usize, time: Duration) {
    let of = |read: fn(&Round) -> f64| median(tally.rounds.iter().map(read).collect());
    let calls = tally.rounds.iter().map(|round| round.calls).sum::<u64>() as f64;
    // Ticks of 10 ms: of all rounds together.
    let per_call = |read: fn(&Round) -> u64| tally.rounds.iter().map(read).sum::<u64>() as f64 / calls;
    // Of the same round: a disturbance affects neighbouring pairs alike.
    let pairs = tally.rounds.iter().zip(&first.rounds);
    let ratio = median(pairs.map(|(this, first)| this.calls as f64 / first.calls as f64).collect());
    let (server, client) = (per_call(|round| round.server_cpu_micros), per_call(|round| round.client_cpu_micros));
    let (rate, p50, p99) = (of(|round| round.calls as f64) / time.as_secs_f64(), of(|r| r.p50), of(|r| r.p99));
    print!("{:<40}{in_flight:>10}{rate:>10.0}{ratio:>10.3}", tally.pair.name);
    println!("{server:>10.2}{client:>10.2}{p50:>10.1}{p99:>10.1}");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}
