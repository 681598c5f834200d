//! What happens to the instances, and the criteria for their callers.

use std::time::Duration;

use mesh::Channel;
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::load::{self, Mix, Outcome, Running};
use crate::report::{Line, load_average, sum};
use crate::world::{Instance, World};

const INSTANCES: usize = 3;
/// The allowed effect of a slow instance on p99: Linkerd's own figure is 29 ms against 30 ms.
const P99_RATIO: f64 = 1.2;
/// A quarter of the slow instance's delay: above this, the machine's noise hides it.
const P99_MAX_MS: f64 = 50.0;
/// Consecutive failures that open the breaker (the mesh's own constant).
const THRESHOLD: u64 = 5;
/// Calls in flight at the last of those failures, and probes: each waits up to twice as long as the one before.
const BESIDES: u64 = 10;
/// An instance with this share of the calls is back; equal instances have a third each.
const BACK_SHARE: f64 = 0.2;
const WINDOW: Duration = Duration::from_secs(1);
/// An instance that let a call's second run out recovers within some 14 s: its cost of 1 s has decayed to 10 ms by then.
const BACK_WITHIN: Duration = Duration::from_secs(20);
/// A new instance must be used within this time.
const USED_WITHIN: Duration = Duration::from_secs(5);
/// Calls to an instance that hangs can only fail: at most this many.
const HUNG_AT_MOST: u64 = 10;
/// The two figures of the retry budget: one retry for five calls, and the initial balance.
const CALLS_PER_RETRY: u64 = 5;
const FIRST_RETRIES: u64 = 10;

/// The size of the scenarios.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) is_quick: bool,
    pub(crate) calls_per_second: u32,
}

impl Scale {
    fn seconds(self, full: u64, quick: u64) -> Duration {
        Duration::from_secs(if self.is_quick { quick } else { full })
    }

    fn start(self, channel: &Channel, mix: Mix) -> Running {
        Running::start(channel, self.calls_per_second, mix)
    }

    /// Until all instances have a measured load.
    async fn warm_up(self, channel: &Channel) {
        load::run(channel, self.calls_per_second, Mix::Both, Duration::from_secs(1)).await;
    }
}

/// All scenarios, or the one with this name.
pub(crate) async fn run(scale: Scale, only: Option<&str>) -> Vec<Line> {
    let is_wanted = |name: &str| only.is_none_or(|only| only == name);
    let began = Instant::now();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("{cores} cores, load average {}; {} calls a second", load_average(), scale.calls_per_second);
    let mut lines = vec![];
    if is_wanted("slow") {
        lines.extend(slow(scale).await);
    }
    if is_wanted("kill") {
        lines.push(kill(scale).await);
    }
    if is_wanted("errors") {
        lines.push(errors(scale, "UNAVAILABLE").await);
        if !scale.is_quick {
            lines.push(errors(scale, "INTERNAL").await);
        }
    }
    if is_wanted("storm") {
        lines.push(storm(scale).await);
    }
    if is_wanted("rolling") {
        lines.push(rolling(scale).await);
    }
    if is_wanted("comes") {
        lines.push(comes(scale).await);
    }
    if is_wanted("hangs") {
        lines.push(hangs(scale).await);
    }
    println!("{:.0} s, load average {}", began.elapsed().as_secs_f64(), load_average());
    lines
}

fn failures(outcome: &Outcome) -> u64 {
    sum(&outcome.repeatable_failed) + sum(&outcome.once_failed)
}

fn median(mut values: Vec<f64>) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// All instances are healthy, and then one is slow.
struct Pair {
    well: Outcome,
    ill: Outcome,
    well_attempts: u64,
    ill_attempts: u64,
    to_slow: u64,
}

impl Pair {
    async fn run(scale: Scale, world: &mut World, channel: &Channel, index: usize) -> Self {
        let segment = scale.seconds(5, 3);
        let first = world.count().await;
        let well = load::run(channel, scale.calls_per_second, Mix::Both, segment).await;
        let second = world.count().await;
        let slow = world.instances[index].command("slow 200").await;
        let ill = load::run(channel, scale.calls_per_second, Mix::Both, segment).await;
        let to_slow = world.instances[index].command("healthy").await - slow;
        let (well_attempts, ill_attempts) = (second - first, world.count().await - second);
        Self { well, ill, well_attempts, ill_attempts, to_slow }
    }

    /// Where even healthy calls take this long, the machine is too busy to measure.
    fn is_conclusive(&self) -> bool {
        self.well.millis(0.99) <= P99_MAX_MS
    }

    fn ratio(&self) -> f64 {
        self.ill.millis(0.99) / self.well.millis(0.99)
    }

    fn print(&self, number: usize) {
        println!(
            "slow, pair {number}: p99 {:.1} ms all healthy, {:.1} ms with one slow, which got {} of {} calls{}",
            self.well.millis(0.99),
            self.ill.millis(0.99),
            self.to_slow,
            self.ill_attempts,
            if self.is_conclusive() { "" } else { "; too busy a machine, another pair" }
        );
    }
}

/// All are healthy and one is slow, in turn: the machine's noise affects both. The slow one changes each time.
async fn slow(scale: Scale) -> [Line; 2] {
    let mut world = World::new(INSTANCES, 0).await;
    let channel = world.channel();
    scale.warm_up(&channel).await;
    let (wanted, at_most) = if scale.is_quick { (2, 3) } else { (5, 12) };
    let (mut pairs, mut failed): (Vec<Pair>, u64) = (vec![], 0);
    for number in 0..at_most {
        let pair = Pair::run(scale, &mut world, &channel, number % INSTANCES).await;
        pair.print(number + 1);
        failed += failures(&pair.well) + failures(&pair.ill);
        pairs.extend(pair.is_conclusive().then_some(pair));
        if pairs.len() == wanted {
            break;
        }
    }
    let ratio = median(pairs.iter().map(Pair::ratio).collect());
    let well_p99 = median(pairs.iter().map(|pair| pair.well.millis(0.99)).collect());
    let ill_p99 = median(pairs.iter().map(|pair| pair.ill.millis(0.99)).collect());
    let to_slow: u64 = pairs.iter().map(|pair| pair.to_slow).sum();
    let is_conclusive = pairs.len() == wanted && failed == 0;
    let counted = format!("{} of {wanted} pairs counted", pairs.len());
    let line = |scenario: &str, is_kept, criterion| Line {
        scenario: scenario.to_owned(),
        is_kept,
        outcome: Outcome::new(),
        attempts: Some(0),
        criterion,
    };
    let mut lines = [
        line("all healthy", is_conclusive, format!("the reference: p99 {well_p99:.1} ms (median); {counted}")),
        line(
            "one of three 200 ms slow",
            is_conclusive && ratio <= P99_RATIO,
            format!(
                "p99 {ill_p99:.1} ms (median), {ratio:.2} x the healthy one (median of pairs; at most {P99_RATIO}); {to_slow} calls went to the slow one"
            ),
        ),
    ];
    for pair in &pairs {
        lines[0].add(&pair.well, pair.well_attempts);
        lines[1].add(&pair.ill, pair.ill_attempts);
    }
    lines
}

/// One is killed every second, and restarted immediately.
async fn kill(scale: Scale) -> Line {
    let mut world = World::new(INSTANCES, 0).await;
    let channel = world.channel();
    scale.warm_up(&channel).await;
    let running = scale.start(&channel, Mix::Both);
    let kills = scale.seconds(20, 3).as_secs();
    for number in 0..kills {
        sleep(Duration::from_secs(1)).await;
        let index = usize::try_from(number).expect("few") % INSTANCES;
        world.instances[index].kill_and_restart().await;
    }
    let outcome = running.stop().await;
    let lost = outcome.once_failed.get("Unavailable CONNECTION_LOST").copied().unwrap_or(0);
    let never_sent = sum(&outcome.once_failed) - lost;
    let repeatable = sum(&outcome.repeatable_failed);
    Line {
        scenario: "one killed (-9) every second".to_owned(),
        is_kept: repeatable == 0 && never_sent == 0,
        outcome,
        attempts: None,
        criterion: format!(
            "{kills} kills; of calls that may be repeated {repeatable} failed (0), of the others {lost} that were at the killed one (may), {never_sent} besides (0)"
        ),
    }
}

/// One fails every call immediately, and recovers after a while.
async fn errors(scale: Scale, code: &str) -> Line {
    let mut world = World::new(INSTANCES, 0).await;
    let channel = world.channel();
    scale.warm_up(&channel).await;
    let first = world.count().await;
    let running = scale.start(&channel, Mix::Both);
    sleep(scale.seconds(3, 1)).await;
    let before = world.instances[0].command(&format!("fail {code}")).await;
    sleep(scale.seconds(6, 2)).await;
    let reached = world.instances[0].command("healthy").await - before;
    let back = until_back(&mut world, 0).await;
    let outcome = running.stop().await;
    let attempts = world.count().await - first;
    let (repeatable, once) = (sum(&outcome.repeatable_failed), sum(&outcome.once_failed));
    // INTERNAL is not retried.
    let lost_at_most = if code == "UNAVAILABLE" { 0 } else { reached };
    Line {
        scenario: format!("one of three answers {code}"),
        is_kept: reached <= THRESHOLD + BESIDES
            && repeatable <= lost_at_most
            && repeatable + once <= reached
            && back.is_some(),
        outcome,
        attempts: Some(attempts),
        criterion: format!(
            "{reached} calls reached it while it failed (at most {THRESHOLD} + {BESIDES}); back at {} after it healed (at most {} s)",
            took(back),
            BACK_WITHIN.as_secs()
        ),
    }
}

fn took(time: Option<Duration>) -> String {
    time.map_or("no time".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()))
}

/// The time until an instance has its share of the calls again.
async fn until_back(world: &mut World, index: usize) -> Option<Duration> {
    let began = Instant::now();
    let mut before = world.counts().await;
    while began.elapsed() < BACK_WITHIN {
        sleep(WINDOW).await;
        let now = world.counts().await;
        let got: Vec<u64> = now.iter().zip(&before).map(|(now, before)| now - before).collect();
        if got[index] as f64 >= BACK_SHARE * got.iter().sum::<u64>() as f64 {
            return Some(began.elapsed());
        }
        before = now;
    }
    None
}

/// All fail every call.
async fn storm(scale: Scale) -> Line {
    let mut world = World::new(INSTANCES, 0).await;
    // Without earlier calls, which would add to the retry budget: it is at its minimum.
    let channel = world.channel();
    for instance in &mut world.instances {
        instance.command("fail UNAVAILABLE").await;
    }
    let outcome = load::run(&channel, scale.calls_per_second, Mix::Repeatable, scale.seconds(15, 3)).await;
    let (calls, attempts) = (outcome.calls(), world.count().await);
    let at_most = calls + calls / CALLS_PER_RETRY + FIRST_RETRIES;
    Line {
        scenario: "all answer UNAVAILABLE".to_owned(),
        // All were tried, and some twice: otherwise it would show nothing.
        is_kept: attempts > calls && attempts <= at_most && sum(&outcome.repeatable_failed) == calls,
        attempts: Some(attempts),
        criterion: format!(
            "{:.3} attempts a call: at most 1.2 x calls + {FIRST_RETRIES} = {at_most}",
            attempts as f64 / calls as f64
        ),
        outcome,
    }
}

/// Each in turn gets SIGTERM, exits after its drain, and is restarted.
async fn rolling(scale: Scale) -> Line {
    let mut world = World::new(INSTANCES, 0).await;
    let channel = world.channel();
    let running = scale.start(&channel, Mix::Both);
    let (rounds, mut attempts) = (if scale.is_quick { 1 } else { 4 }, 0);
    for _ in 0..rounds {
        for index in 0..INSTANCES {
            sleep(Duration::from_secs(1)).await;
            attempts += world.instances[index].replace().await;
        }
    }
    sleep(Duration::from_secs(1)).await;
    let outcome = running.stop().await;
    attempts += world.count().await;
    let failed = failures(&outcome);
    Line {
        scenario: "rolling restart".to_owned(),
        // Each call was processed once: calls refused by a GOAWAY were not processed.
        is_kept: failed == 0 && attempts == outcome.calls(),
        criterion: format!(
            "{} restarts, {failed} of all calls failed (0), {} processed twice (0)",
            rounds * INSTANCES,
            attempts.saturating_sub(outcome.calls())
        ),
        attempts: Some(attempts),
        outcome,
    }
}

/// A fourth address, without an instance for a while.
async fn comes(scale: Scale) -> Line {
    let mut world = World::new(INSTANCES, 1).await;
    let channel = world.channel();
    let running = scale.start(&channel, Mix::Both);
    // Until it is tried only rarely.
    sleep(scale.seconds(10, 2)).await;
    world.instances.push(Instance::start(world.ports[INSTANCES]).await);
    let began = Instant::now();
    let mut used = None;
    while used.is_none() && began.elapsed() < 2 * USED_WITHIN {
        sleep(Duration::from_millis(20)).await;
        used = (world.instances[INSTANCES].command("count").await > 0).then(|| began.elapsed());
    }
    sleep(Duration::from_secs(1)).await;
    let outcome = running.stop().await;
    let attempts = world.count().await;
    let failed = failures(&outcome);
    Line {
        scenario: "a dead address comes alive".to_owned(),
        is_kept: failed == 0 && used.is_some_and(|used| used <= USED_WITHIN),
        outcome,
        attempts: Some(attempts),
        criterion: format!("used after {} (at most {} s); {failed} failed (0)", took(used), USED_WITHIN.as_secs()),
    }
}

/// One is stopped (SIGSTOP): its connections stay open, but nothing is answered.
async fn hangs(scale: Scale) -> Line {
    let mut world = World::new(INSTANCES, 0).await;
    let channel = world.channel();
    scale.warm_up(&channel).await;
    let first = world.count().await;
    let running = scale.start(&channel, Mix::Both);
    sleep(Duration::from_secs(1)).await;
    world.instances[0].signal(Signal::STOP);
    sleep(scale.seconds(10, 2)).await;
    world.instances[0].signal(Signal::CONT);
    let back = until_back(&mut world, 0).await;
    let outcome = running.stop().await;
    let attempts = world.count().await - first;
    let failed = failures(&outcome);
    Line {
        scenario: format!("one hangs for {} s", scale.seconds(10, 2).as_secs()),
        is_kept: failed <= HUNG_AT_MOST && back.is_some(),
        outcome,
        attempts: Some(attempts),
        criterion: format!(
            "{failed} failed by their deadline of 1 s (at most {HUNG_AT_MOST}); back at {} after it went on (at most {} s)",
            took(back),
            BACK_WITHIN.as_secs()
        ),
    }
}
