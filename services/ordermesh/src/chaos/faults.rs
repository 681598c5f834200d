//! The faults and their schedule, determined by the seed alone. Their effects depend on the machine.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::chaos::InProgress;
use crate::child::signal;
use crate::promises::Sources;
use crate::service::Service;
use crate::supervisor::Supervisor;

/// Longer than a lease.
const STOPPED: Duration = Duration::from_millis(3_000);
/// How long PostgreSQL is down.
const POSTGRES_DOWN: Duration = Duration::from_millis(1_500);

/// A fault to inject.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Fault {
    /// SIGKILL of an instance.
    Kill(Service),
    /// SIGKILL of all of a service's instances.
    KillAll(Service),
    /// SIGSTOP of an instance for longer than a lease, then SIGCONT.
    Stop(Service),
    /// SIGKILL of everything.
    KillEverything,
    /// PostgreSQL is killed and restarted.
    Postgres,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(service) => write!(f, "kill -9 of one {service}"),
            Self::KillAll(service) => write!(f, "kill -9 of every {service}"),
            Self::Stop(service) => write!(f, "{} s of SIGSTOP for one {service}", STOPPED.as_secs()),
            Self::KillEverything => f.write_str("kill -9 of everything"),
            Self::Postgres => f.write_str("PostgreSQL killed"),
        }
    }
}

impl Fault {
    /// Without the service: the marks of a plot.
    fn kind(self) -> &'static str {
        match self {
            Self::Kill(_) => "kill -9 of one instance",
            Self::KillAll(_) => "kill -9 of a service",
            Self::Stop(_) => "SIGSTOP of one instance",
            Self::KillEverything => "kill -9 of everything",
            Self::Postgres => "PostgreSQL killed",
        }
    }
}

/// The injected faults, and the orders in progress at the time.
#[derive(Default)]
pub(crate) struct Tally {
    /// When each was injected, and its kind.
    pub(crate) marks: Vec<(Instant, &'static str)>,
    injected: BTreeMap<Fault, u64>,
    in_progress: InProgress,
}

impl Tally {
    pub(crate) fn faults(&self) -> u64 {
        self.injected.values().sum()
    }

    /// The number of each fault, and of orders in progress by state.
    pub(crate) fn json(&self) -> Value {
        let injected: BTreeMap<_, _> = self.injected.iter().map(|(fault, count)| (fault.to_string(), count)).collect();
        json!({ "injected": injected, "orders_in_progress": self.in_progress })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (fault, count) in &self.injected {
            writeln!(f, "{count:>8} {fault}")?;
        }
        let states: Vec<String> = self.in_progress.iter().map(|(state, count)| format!("{count} {state}")).collect();
        write!(f, "{:>8} faults; orders in progress at the time, in total: {}", self.faults(), states.join(", "))
    }
}

/// Injects faults into a system under load.
pub(crate) struct FaultInjector<'a> {
    random: StdRng,
    every: Duration,
    supervisor: &'a Supervisor,
    postgres: Option<&'a postgres_server::Server>,
    sources: Sources,
    tally: Tally,
    /// The stopped processes, with the time until they continue.
    stopped: Vec<(u32, Duration)>,
}

impl<'a> FaultInjector<'a> {
    pub(crate) fn new(
        seed: u64,
        every: Duration,
        supervisor: &'a Supervisor,
        postgres: Option<&'a postgres_server::Server>,
        sources: Sources,
    ) -> Self {
        let random = StdRng::seed_from_u64(seed);
        Self { random, every, supervisor, postgres, sources, tally: Tally::default(), stopped: Vec::new() }
    }

    /// Injects one fault after the other until `is_over`; then stopped processes continue.
    pub(crate) async fn run(mut self, is_over: impl Fn() -> bool) -> Tally {
        while !is_over() {
            let pause = self.every.mul_f64(self.random.random_range(0.5..1.5));
            let fault = self.draw();
            let chance: u32 = self.random.random();
            tokio::time::sleep(pause).await;
            self.advance(pause);
            self.count_orders().await;
            self.tally.marks.push((Instant::now(), fault.kind()));
            self.inject(fault, chance).await;
            *self.tally.injected.entry(fault).or_default() += 1;
        }
        self.advance(Duration::MAX);
        self.tally
    }

    fn draw(&mut self) -> Fault {
        let service = Service::ALL[self.random.random_range(0..Service::ALL.len())];
        match self.random.random_range(0..100) {
            0..60 => Fault::Kill(service),
            60..68 => Fault::KillAll(service),
            68..88 => Fault::Stop(service),
            88..91 => Fault::KillEverything,
            _ if self.postgres.is_some() => Fault::Postgres,
            _ => Fault::Kill(service),
        }
    }

    async fn inject(&mut self, fault: Fault, chance: u32) {
        match fault {
            Fault::Kill(service) => {
                let _ = self.one_of(service, chance).map(|pid| signal(pid, Signal::KILL));
            }
            Fault::KillAll(service) => {
                let of_it = self.supervisor.pids_of(service);
                of_it.into_iter().for_each(|pid| signal(pid, Signal::KILL));
            }
            Fault::Stop(service) => {
                if let Some(pid) = self.one_of(service, chance) {
                    signal(pid, Signal::STOP);
                    self.stopped.push((pid, STOPPED));
                }
            }
            Fault::KillEverything => {
                for service in Service::ALL {
                    self.supervisor.pids_of(service).into_iter().for_each(|pid| signal(pid, Signal::KILL));
                }
            }
            Fault::Postgres => {
                let Some(server) = self.postgres else { return };
                // Blocking calls: they wait for processes.
                tokio::task::block_in_place(|| server.crash());
                tokio::time::sleep(POSTGRES_DOWN).await;
                tokio::task::block_in_place(|| server.begin());
            }
        }
    }

    fn one_of(&self, service: Service, chance: u32) -> Option<u32> {
        let pids = self.supervisor.pids_of(service);
        let index = usize::try_from(chance).unwrap_or(0).checked_rem(pids.len())?;
        pids.get(index).copied()
    }

    fn advance(&mut self, passed: Duration) {
        for (_, left) in &mut self.stopped {
            *left = left.saturating_sub(passed);
        }
        self.stopped.retain(|(pid, left)| {
            if left.is_zero() {
                signal(*pid, Signal::CONT);
            }
            !left.is_zero()
        });
    }

    /// Counts the orders in progress when the next fault is injected.
    async fn count_orders(&mut self) {
        // An unavailable database is not counted.
        let Ok(Ok(counts)) = tokio::time::timeout(Duration::from_secs(1), self.sources.orders.unfinished()).await
        else {
            return;
        };
        for (state, count) in counts.0 {
            *self.tally.in_progress.entry(state).or_default() += count;
        }
    }
}
