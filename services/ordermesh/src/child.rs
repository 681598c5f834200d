//! One child process: started, restarted when it dies, ended when it is told to.
//!
//! A child reads its stdin, a pipe that only its supervisor holds: at its end (because the supervisor closed it, or
//! was killed) the child drains. So no child outlives its supervisor, and no signal is needed to end one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::out;

/// Tells a process that its stdin is its supervisor's.
pub(crate) const SUPERVISED: &str = "ORDERMESH_SUPERVISED";

/// How long a drain may take: longer than the services' own limits, and what Kubernetes gives.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// What a child is told by us or not at all: of our own environment these would make one that nobody can reach.
const NOT_INHERITED: [&str; 6] = ["TLS_CERT", "TLS_KEY", "TLS_CA", "TRUST_DOMAIN", "MESH_SECRET_FILE", "MIGRATE_ONLY"];

/// Between a death and a start that is at once.
const AT_ONCE: Duration = Duration::from_millis(20);

/// How to start a child.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// For example `order-1`.
    pub(crate) name: String,
    /// This program.
    pub(crate) program: PathBuf,
    /// The subcommand and its flags.
    pub(crate) args: Vec<OsString>,
    /// Added to our own environment.
    pub(crate) env: Vec<(String, OsString)>,
    /// Neither it nor we print anything about it.
    pub(crate) quiet: bool,
    /// However often it dies.
    pub(crate) restarts_at_once: bool,
    /// Where its process is told of.
    pub(crate) pids: Pids,
    /// Where it is said when its settings are wrong.
    pub(crate) misconfigured: Misconfigured,
}

/// The child that ended because its settings are wrong, if one did. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Misconfigured(watch::Sender<Option<String>>);

impl Misconfigured {
    /// Returns its name, once there is one.
    pub(crate) async fn name(&self) -> String {
        let mut changes = self.0.subscribe();
        match changes.wait_for(Option::is_some).await {
            Ok(name) => name.clone().unwrap_or_default(),
            // The sender lives as long as this.
            Err(_) => std::future::pending().await,
        }
    }
}

/// What a child ends with when its settings are wrong, as [`Error::exit_code`] has it.
const WRONG_SETTINGS: i32 = 2;

/// The processes that run now, by instance. Clones are the same list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pids(Arc<Mutex<BTreeMap<String, u32>>>);

impl Pids {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of the instances of a service.
    pub(crate) fn of(&self, service: &str) -> Vec<u32> {
        let is_of_it = |name: &str| name.rsplit_once('-').is_some_and(|(of, _)| of == service);
        self.lock().iter().filter(|(name, _)| is_of_it(name)).map(|(_, pid)| *pid).collect()
    }

    /// kill -9 of all of them.
    pub(crate) fn kill_all(&self) {
        self.lock().values().for_each(|pid| signal(*pid, Signal::KILL));
    }
}

/// Sends a signal to one of our children; one that has just ended by itself has nothing to be told.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

impl Spec {
    fn spawn(&self) -> Result<Child, Error> {
        // Built anew or taken away while we run: then it is found where the kernel still has it.
        let is_gone = self.program.is_absolute() && !self.program.exists();
        let program = if is_gone { Path::new("/proc/self/exe") } else { &self.program };
        let mut command = Command::new(program);
        for name in NOT_INHERITED {
            command.env_remove(format!("ORDERMESH_{name}")).env_remove(format!("GATEWAY_{name}"));
        }
        command
            .arg0(&self.program)
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .env(SUPERVISED, "1")
            .stdin(Stdio::piped())
            .stdout(if self.quiet { Stdio::null() } else { Stdio::inherit() })
            // Out of the terminal's foreground group: Ctrl-C is for the supervisor, which ends them in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| Error::Spawn(self.name.clone(), source))
    }

    fn say(&self, text: &str) {
        if !self.quiet {
            out::say(format_args!("ordermesh: {} {text}", self.name));
        }
    }
}

/// How long to wait before a child is started again.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Restarts {
    in_a_row: u32,
}

impl Restarts {
    const FIRST: Duration = Duration::from_millis(100);
    const MOST: Duration = Duration::from_secs(5);
    /// A life this long was a good one: the next wait is the first again.
    const GOOD_LIFE: Duration = Duration::from_secs(10);

    /// The wait after a life this long.
    pub(crate) fn after(&mut self, life: Duration) -> Duration {
        if life >= Self::GOOD_LIFE {
            self.in_a_row = 0;
        }
        let wait = Self::FIRST.saturating_mul(1 << self.in_a_row.min(10)).min(Self::MOST);
        self.in_a_row = self.in_a_row.saturating_add(1);
        wait
    }
}

/// Keeps a child alive until told to stop; then lets it drain.
pub(crate) async fn keep(spec: Spec, stop: CancellationToken) {
    let mut restarts = Restarts::default();
    while !stop.is_cancelled() {
        let born = Instant::now();
        let ended = match spec.spawn() {
            Ok(mut child) => {
                // Taken out: `wait` would close it first, and the child would end.
                let stdin = child.stdin.take();
                if let Some(pid) = child.id() {
                    spec.pids.lock().insert(spec.name.clone(), pid);
                }
                let status = tokio::select! {
                    // What has been waited for has no process any more: its number may soon be somebody else's.
                    status = child.wait() => status,
                    () = stop.cancelled() => {
                        drain(&spec, child, stdin).await;
                        spec.pids.lock().remove(&spec.name);
                        return;
                    }
                };
                spec.pids.lock().remove(&spec.name);
                if status.as_ref().is_ok_and(|status| status.code() == Some(WRONG_SETTINGS)) {
                    spec.misconfigured.0.send_replace(Some(spec.name));
                    return;
                }
                how_it_ended(status)
            }
            Err(error) => error.report(),
        };
        let wait = if spec.restarts_at_once { AT_ONCE } else { restarts.after(born.elapsed()) };
        spec.say(&format!("{ended}; it is started again in {} ms", wait.as_millis()));
        stop.run_until_cancelled(tokio::time::sleep(wait)).await;
    }
}

async fn drain(spec: &Spec, mut child: Child, stdin: Option<ChildStdin>) {
    drop(stdin);
    if tokio::time::timeout(DRAIN_LIMIT, child.wait()).await.is_err() {
        spec.say(&format!("did not end within {} s: it is killed", DRAIN_LIMIT.as_secs()));
        // It may have ended just now: then there is nothing to kill.
        let _ = child.kill().await;
    }
}

fn how_it_ended(status: std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => format!("has ended ({status})"),
        Err(error) => format!("cannot be watched ({error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_five_seconds_and_a_good_life_begins_anew() {
        let mut restarts = Restarts::default();
        let short = Duration::from_millis(5);
        let waits: Vec<u128> = (0..8).map(|_| restarts.after(short).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(restarts.after(Duration::from_secs(10)), Duration::from_millis(100));
        assert_eq!(restarts.after(short), Duration::from_millis(200));
    }

    #[tokio::test]
    async fn a_child_ends_when_its_stdin_does() {
        let spec = Spec {
            name: "cat".into(),
            program: "cat".into(),
            args: vec![],
            env: vec![],
            quiet: true,
            restarts_at_once: false,
            pids: Pids::default(),
            misconfigured: Misconfigured::default(),
        };
        let mut child = spec.spawn().expect("cat is everywhere");
        let stdin = child.stdin.take();
        assert!(child.try_wait().expect("watched").is_none(), "it waits for its stdin");
        // Were it not for its stdin, this would take 25 s and be killed.
        let began = Instant::now();
        drain(&spec, child, stdin).await;
        assert!(began.elapsed() < DRAIN_LIMIT);
    }
}
