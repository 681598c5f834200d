//! One child process: started, restarted when it crashes, stopped on request.
//!
//! A child reads its stdin, a pipe that only its supervisor holds: at end of file (because the supervisor closed it, or
//! was killed) the child drains. So no child outlives its supervisor, and no signal is needed to stop one.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::out;

/// Set for a process whose stdin is its supervisor's.
pub(crate) const SUPERVISED: &str = "ORDERMESH_SUPERVISED";

/// Maximum time for a drain: longer than the services' own limits, and the default grace period of Kubernetes.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Set by the supervisor or not at all: inherited, these would make instances that other services cannot reach.
const NOT_INHERITED: [&str; 9] = [
    "TLS_CERT",
    "TLS_KEY",
    "TLS_CA",
    "TRUST_DOMAIN",
    "MESH_SECRET_FILE",
    "MIGRATE_ONLY",
    "TRAFFIC_POLICY",
    "ALLOW_FAULTS",
    // The supervisor has read it.
    "CONFIG",
];

/// Whether a child does not inherit a variable.
pub(crate) fn is_removed(variable: &OsStr) -> bool {
    let name = variable.to_str().and_then(|name| name.strip_prefix("ORDERMESH_").or(name.strip_prefix("GATEWAY_")));
    name.is_some_and(|name| NOT_INHERITED.contains(&name))
}

/// The number of a process's worker threads, read by tokio.
const WORKER_THREADS: &str = "TOKIO_WORKER_THREADS";

/// The delay of an immediate restart.
const AT_ONCE: Duration = Duration::from_millis(20);

/// How to start a child.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// The instance's name, for example `order-1`.
    pub(crate) name: String,
    /// The path of this program.
    pub(crate) program: PathBuf,
    /// The subcommand and its flags.
    pub(crate) args: Vec<OsString>,
    /// Variables added to the inherited environment.
    pub(crate) env: Vec<(String, OsString)>,
    /// Suppresses the output of and about the child.
    pub(crate) quiet: bool,
    /// Restart without backoff after crashes.
    pub(crate) restarts_at_once: bool,
    /// Records the running process.
    pub(crate) pids: Pids,
    /// Reports that the settings are invalid.
    pub(crate) misconfigured: Misconfigured,
}

/// The child that exited because its settings are invalid, if any. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Misconfigured(watch::Sender<Option<String>>);

impl Misconfigured {
    /// Completes with the child's name, once there is one.
    pub(crate) async fn name(&self) -> String {
        let mut changes = self.0.subscribe();
        match changes.wait_for(Option::is_some).await {
            Ok(name) => name.clone().unwrap_or_default(),
            // The sender outlives this future.
            Err(_) => std::future::pending().await,
        }
    }
}

/// The exit code of a child with invalid settings, see [`Error::exit_code`].
const WRONG_SETTINGS: i32 = 2;

/// The running processes, by instance. Clones share the list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pids(Arc<Mutex<BTreeMap<String, u32>>>);

impl Pids {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, u32>> {
        self.0.lock()
    }

    /// The processes of a service's instances.
    pub(crate) fn of(&self, service: &str) -> Vec<u32> {
        let is_of_it = |name: &str| name.rsplit_once('-').is_some_and(|(prefix, _)| prefix == service);
        self.lock().iter().filter(|(name, _)| is_of_it(name)).map(|(_, pid)| *pid).collect()
    }

    /// SIGKILL of all of them.
    pub(crate) fn kill_all(&self) {
        self.lock().values().for_each(|pid| signal(*pid, Signal::KILL));
    }
}

/// Sends a signal to a child; no-op if it has just exited.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// The processes of a system share the machine. With a thread per core each, tasks move between cores for nothing: at 64
/// customers on two cores an order cost a sixth more CPU.
fn worker_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2))
}

impl Spec {
    fn spawn(&self) -> Result<Child, Error> {
        // The program may have been rebuilt or removed while running: then the kernel still provides it.
        let is_gone = self.program.is_absolute() && !self.program.exists();
        let program = if is_gone { Path::new("/proc/self/exe") } else { &self.program };
        let mut command = Command::new(program);
        for name in NOT_INHERITED {
            command.env_remove(format!("ORDERMESH_{name}")).env_remove(format!("GATEWAY_{name}"));
        }
        if std::env::var_os(WORKER_THREADS).is_none() {
            command.env(WORKER_THREADS, worker_threads().to_string());
        }
        command
            .arg0(&self.program)
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .env(SUPERVISED, "1")
            .stdin(Stdio::piped())
            .stdout(if self.quiet { Stdio::null() } else { Stdio::inherit() })
            // Not in the terminal's foreground process group: Ctrl-C is for the supervisor, which stops the children in
            // order.
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

/// The backoff of a child's restarts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Restarts {
    in_a_row: u32,
}

impl Restarts {
    const FIRST: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(5);
    /// A run at least this long resets the backoff.
    const GOOD_LIFE: Duration = Duration::from_secs(10);

    /// The backoff after a run of this length.
    pub(crate) fn after(&mut self, life: Duration) -> Duration {
        if life >= Self::GOOD_LIFE {
            self.in_a_row = 0;
        }
        let wait = Self::FIRST.saturating_mul(1 << self.in_a_row.min(10)).min(Self::MAX);
        self.in_a_row = self.in_a_row.saturating_add(1);
        wait
    }
}

/// Restarts a child until `stop`; then lets it drain.
pub(crate) async fn keep(spec: Spec, stop: CancellationToken) {
    let mut restarts = Restarts::default();
    while !stop.is_cancelled() {
        let born = Instant::now();
        let ended = match spec.spawn() {
            Ok(mut child) => {
                // Taken out: `wait` would close it first, and the child would exit.
                let stdin = child.stdin.take();
                if let Some(pid) = child.id() {
                    spec.pids.lock().insert(spec.name.clone(), pid);
                }
                let status = tokio::select! {
                    // A process that has been waited for no longer exists: its id may be reused.
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
        spec.say(&format!("{ended}; restarting in {} ms", wait.as_millis()));
        stop.run_until_cancelled(tokio::time::sleep(wait)).await;
    }
}

async fn drain(spec: &Spec, mut child: Child, stdin: Option<ChildStdin>) {
    drop(stdin);
    if tokio::time::timeout(DRAIN_TIMEOUT, child.wait()).await.is_err() {
        spec.say(&format!("did not exit within {} s; killing it", DRAIN_TIMEOUT.as_secs()));
        // It may have exited just now: then there is nothing to kill.
        let _ = child.kill().await;
    }
}

fn how_it_ended(status: std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => format!("exited ({status})"),
        Err(error) => format!("cannot be waited for ({error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_backoff_doubles_up_to_five_seconds_and_a_long_run_resets_it() {
        let mut restarts = Restarts::default();
        let short = Duration::from_millis(5);
        let waits: Vec<u128> = (0..8).map(|_| restarts.after(short).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(restarts.after(Duration::from_secs(10)), Duration::from_millis(100));
        assert_eq!(restarts.after(short), Duration::from_millis(200));
    }

    #[tokio::test]
    async fn a_child_exits_when_its_stdin_is_closed() {
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
        // If closing stdin had no effect, this would time out and kill the child.
        let began = Instant::now();
        drain(&spec, child, stdin).await;
        assert!(began.elapsed() < DRAIN_TIMEOUT);
    }
}
