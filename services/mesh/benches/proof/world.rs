//! The instances: processes that are started, controlled on their stdin, and sent signals.

use std::net::{Ipv4Addr, TcpListener};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use mesh::{Channel, ClientConfig};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::instance::{COUNT, FLAG, POLICIES, READY};

/// Anything slower is broken.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Below the kernel's ephemeral ports: an outgoing connection might take the port of a killed instance, or even connect
/// to itself.
const PORTS: std::ops::Range<u16> = 31_000..32_700;

/// A running instance.
pub(crate) struct Instance {
    port: u16,
    child: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Instance {
    /// Returns when it accepts calls.
    pub(crate) async fn start(port: u16) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        command.args([FLAG, &port.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("a process");
        let commands = child.stdin.take().expect("a pipe");
        let answers = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut instance = Self { port, child, commands, answers };
        assert_eq!(instance.line().await, READY);
        instance
    }

    async fn line(&mut self) -> String {
        let line = timeout(TIMEOUT, self.answers.next_line()).await.expect("an answer in time");
        line.expect("a pipe").expect("the instance lives")
    }

    async fn count_line(&mut self) -> u64 {
        let line = self.line().await;
        line.strip_prefix(COUNT).and_then(|count| count.parse().ok()).expect("a count")
    }

    /// Returns when the command is applied, with the number of calls begun by then.
    pub(crate) async fn command(&mut self, command: &str) -> u64 {
        self.commands.write_all(format!("{command}\n").as_bytes()).await.expect("the instance lives");
        self.count_line().await
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        kill_process(pid.expect("it runs"), signal).expect("a process of ours");
    }

    async fn end(&mut self) -> ExitStatus {
        timeout(TIMEOUT, self.child.wait()).await.expect("it ends in time").expect("a process of ours")
    }

    /// `kill -9`, and a new process at the same address.
    pub(crate) async fn kill_and_restart(&mut self) {
        self.signal(Signal::KILL);
        self.end().await;
        *self = Self::start(self.port).await;
    }

    /// SIGTERM, drain, exit with 0, and a new process at the same address: returns the calls of the old one.
    pub(crate) async fn replace(&mut self) -> u64 {
        self.signal(Signal::TERM);
        let calls = self.count_line().await;
        let status = self.end().await;
        assert!(status.success(), "drained: {status}");
        *self = Self::start(self.port).await;
        calls
    }
}

/// The instances of one service.
pub(crate) struct World {
    pub(crate) instances: Vec<Instance>,
    pub(crate) ports: Vec<u16>,
}

impl World {
    /// `instances` instances, and `dead` addresses without one.
    pub(crate) async fn new(instances: usize, dead: usize) -> Self {
        let ports = free_ports(instances + dead);
        let mut world = Self { instances: vec![], ports };
        for port in world.ports.iter().take(instances) {
            world.instances.push(Instance::start(*port).await);
        }
        world
    }

    /// A new client, without measurements of the instances.
    pub(crate) fn channel(&self) -> Channel {
        let addresses: Vec<String> = self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        mesh::client(ClientConfig::new("proof", addresses, POLICIES))
    }

    pub(crate) async fn counts(&mut self) -> Vec<u64> {
        let mut counts = vec![];
        for instance in &mut self.instances {
            counts.push(instance.command("count").await);
        }
        counts
    }

    pub(crate) async fn count(&mut self) -> u64 {
        self.counts().await.into_iter().sum()
    }
}

fn free_ports(many: usize) -> Vec<u16> {
    let free = PORTS.filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok());
    let ports: Vec<u16> = free.take(many).collect();
    assert_eq!(ports.len(), many, "no free ports");
    ports
}
