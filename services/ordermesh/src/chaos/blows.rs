//! The faults and their schedule, determined by the seed alone. Their effects depend on the machine.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;

use crate::chaos::UnderWay;
use crate::child::signal;
use crate::promises::Sources;
use crate::service::Service;
use crate::supervisor::Supervisor;

/// Longer than a lease.
const STOP: Duration = Duration::from_millis(3_000);
/// How long PostgreSQL is down.
const AWAY: Duration = Duration::from_millis(1_500);

/// A fault to inject.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Blow {
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

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(service) => write!(f, "kill -9 of one {service}"),
            Self::KillAll(service) => write!(f, "kill -9 of every {service}"),
            Self::Stop(service) => write!(f, "{} s of SIGSTOP for one {service}", STOP.as_secs()),
            Self::KillEverything => f.write_str("kill -9 of everything"),
            Self::Postgres => f.write_str("PostgreSQL killed"),
        }
    }
}

/// The injected faults, and the orders in progress at the time.
#[derive(Default)]
pub(crate) struct Tally {
    fallen: BTreeMap<Blow, u64>,
    under_way: UnderWay,
}

impl Tally {
    pub(crate) fn blows(&self) -> u64 {
        self.fallen.values().sum()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (blow, count) in &self.fallen {
            writeln!(f, "{count:>8} {blow}")?;
        }
        let states: Vec<String> = self.under_way.iter().map(|(state, count)| format!("{count} {state}")).collect();
        write!(f, "{:>8} faults; orders in progress at the time, in total: {}", self.blows(), states.join(", "))
    }
}

/// The faults of a run.
pub(crate) struct Blows<'a> {
    random: StdRng,
    every: Duration,
    supervisor: &'a Supervisor,
    postgres: Option<&'a postgres_server::Server>,
    sources: Sources,
    tally: Tally,
    /// The stopped processes, with the time until they continue.
    stopped: Vec<(u32, Duration)>,
}

impl<'a> Blows<'a> {
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
    pub(crate) async fn fall(mut self, is_over: impl Fn() -> bool) -> Tally {
        while !is_over() {
            let pause = self.every.mul_f64(self.random.random_range(0.5..1.5));
            let blow = self.draw();
            let chance: u32 = self.random.random();
            tokio::time::sleep(pause).await;
            self.time_passes(pause);
            self.look().await;
            self.strike(blow, chance).await;
            *self.tally.fallen.entry(blow).or_default() += 1;
        }
        self.time_passes(Duration::MAX);
        self.tally
    }

    fn draw(&mut self) -> Blow {
        let service = Service::ALL[self.random.random_range(0..Service::ALL.len())];
        match self.random.random_range(0..100) {
            0..60 => Blow::Kill(service),
            60..68 => Blow::KillAll(service),
            68..88 => Blow::Stop(service),
            88..91 => Blow::KillEverything,
            _ if self.postgres.is_some() => Blow::Postgres,
            _ => Blow::Kill(service),
        }
    }

    async fn strike(&mut self, blow: Blow, chance: u32) {
        match blow {
            Blow::Kill(service) => {
                let _ = self.one_of(service, chance).map(|pid| signal(pid, Signal::KILL));
            }
            Blow::KillAll(service) => {
                let of_it = self.supervisor.pids_of(service);
                of_it.into_iter().for_each(|pid| signal(pid, Signal::KILL));
            }
            Blow::Stop(service) => {
                if let Some(pid) = self.one_of(service, chance) {
                    signal(pid, Signal::STOP);
                    self.stopped.push((pid, STOP));
                }
            }
            Blow::KillEverything => {
                for service in Service::ALL {
                    self.supervisor.pids_of(service).into_iter().for_each(|pid| signal(pid, Signal::KILL));
                }
            }
            Blow::Postgres => {
                let Some(server) = self.postgres else { return };
                // Blocking calls: they wait for processes.
                tokio::task::block_in_place(|| server.crash());
                tokio::time::sleep(AWAY).await;
                tokio::task::block_in_place(|| server.begin());
            }
        }
    }

    fn one_of(&self, service: Service, chance: u32) -> Option<u32> {
        let pids = self.supervisor.pids_of(service);
        let index = usize::try_from(chance).unwrap_or(0).checked_rem(pids.len())?;
        pids.get(index).copied()
    }

    fn time_passes(&mut self, passed: Duration) {
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
    async fn look(&mut self) {
        // An unavailable database is not counted.
        let Ok(Ok(counts)) = tokio::time::timeout(Duration::from_secs(1), self.sources.orders.unfinished()).await
        else {
            return;
        };
        for (state, count) in counts.0 {
            *self.tally.under_way.entry(state).or_default() += count;
        }
    }
}
