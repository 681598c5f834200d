//! A server process and a client process, and the pipes between them and this one. Both exit when their stdin is closed.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::flag;
use crate::load::Round;
use crate::stacks::Stack;

/// Settings that all processes share.
pub(crate) struct Setting {
    pub(crate) collector: String,
    pub(crate) certificates: PathBuf,
}

impl Setting {
    /// The settings that the parent has passed.
    pub(crate) fn of_child() -> Self {
        let required = |name| flag(name).expect("passed by the parent");
        Self { collector: required("--collector"), certificates: required("--certificates").into() }
    }
}

struct Process {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(program: &PathBuf, setting: &Setting, role: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(role).args(["--collector", &setting.collector, "--certificates"]).arg(&setting.certificates);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("it starts");
        let (input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        Self { child, input, output: BufReader::new(output).lines() }
    }

    async fn line(&mut self) -> String {
        self.output.next_line().await.expect("readable").expect("it lives")
    }

    /// The process's CPU time, including its exporter's threads.
    fn cpu_micros(&self) -> u64 {
        let id = self.child.id().expect("it lives");
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).expect("Linux");
        let (_, after_name) = stat.rsplit_once(')').expect("a name");
        let ticks = after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("ticks"));
        ticks.sum::<u64>() * 10_000
    }

    async fn stop(mut self) {
        drop(self.input);
        self.child.wait().await.expect("it ends");
    }
}

/// A server and its client.
pub(crate) struct Pair {
    pub(crate) name: String,
    stack: Stack,
    server: Process,
    client: Process,
    calls: u64,
}

impl Pair {
    /// `b`, or `b=/path/of/another/build`.
    pub(crate) async fn start(key: &str, setting: &Setting) -> Self {
        let this = || std::env::current_exe().expect("a path");
        let (key, program, mark) = match key.split_once('=') {
            Some((key, path)) => (key, PathBuf::from(path), " of the other build"),
            None => (key, this(), ""),
        };
        let stack = Stack::of(key).expect("a stack");
        let mut server = Process::start(&program, setting, &["--serve", key]);
        let address = server.line().await;
        let client = Process::start(&program, setting, &["--call", key, "--server", &address]);
        Self { name: format!("({key}) {}{mark}", stack.name()), stack, server, client, calls: 0 }
    }

    pub(crate) async fn run(&mut self, in_flight: usize, time: Duration) -> Round {
        let (server, client) = (self.server.cpu_micros(), self.client.cpu_micros());
        let command = format!("{in_flight} {}\n", time.as_secs_f64());
        self.client.input.write_all(command.as_bytes()).await.expect("it lives");
        let answer = self.client.line().await;
        let mut numbers = answer.split(' ').map(|number| number.parse::<f64>().expect("a number"));
        let mut next = || numbers.next().expect("three numbers");
        let calls = next() as u64;
        self.calls += calls;
        Round {
            calls,
            p50: next(),
            p99: next(),
            server_cpu_micros: self.server.cpu_micros() - server,
            client_cpu_micros: self.client.cpu_micros() - client,
        }
    }

    /// Stops both; returns the number of spans that they should have exported.
    pub(crate) async fn stop(self) -> u64 {
        self.client.stop().await;
        self.server.stop().await;
        if self.stack == Stack::Exporting { 2 * self.calls } else { 0 }
    }
}
