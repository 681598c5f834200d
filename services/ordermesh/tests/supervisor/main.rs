//! The supervisor as a person starts it: the built program, real ports, a temporary folder.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longer than a start or an end ever takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A system of one instance each; killed at the end, if it still runs.
struct World {
    supervisor: Child,
    port_base: u16,
    _folder: tempfile::TempDir,
    data_dir: std::path::PathBuf,
}

impl World {
    /// Starts a system, and returns when it says that it is ready; with what it said.
    fn start() -> (Self, String) {
        let folder = tempfile::tempdir().expect("a folder");
        let data_dir = folder.path().join("data");
        let port_base = free_port_base();
        let mut supervisor = ordermesh(port_base, &data_dir).stdout(Stdio::piped()).spawn().expect("starts");
        let mut told = String::new();
        let mut lines = BufReader::new(supervisor.stdout.take().expect("piped"));
        while !told.contains("Ctrl-C ends the system") {
            assert!(lines.read_line(&mut told).expect("readable") > 0, "it ended: {told}");
        }
        // Somebody has to read on: a full pipe would stop it.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        (Self { supervisor, port_base, _folder: folder, data_dir }, told)
    }

    fn admin_ports(&self) -> Vec<u16> {
        [101, 201, 301, 401, 501].iter().map(|offset| self.port_base + 1_000 + offset).collect()
    }

    fn signal(&self, signal: &str) {
        kill(signal, self.supervisor.id());
    }

    fn children(&self) -> Vec<u32> {
        let processes = std::fs::read_dir("/proc").expect("Linux").flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| parent(*pid) == Some(self.supervisor.id())).collect()
    }

    fn until_nobody_listens(&self) {
        for port in self.admin_ports() {
            until(&format!("port {port} is free"), || TcpStream::connect(("127.0.0.1", port)).is_err());
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Its children end by themselves: that is what the tests are about.
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
    }
}

fn ordermesh(port_base: u16, data_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ordermesh"));
    command.args(["--instances", "1", "--user.bcrypt-cost", "4", "--port-base", &port_base.to_string()]);
    command.arg("--data-dir").arg(data_dir).env_remove("OTEL_EXPORTER_OTLP_ENDPOINT");
    command
}

/// Below the ports that the kernel hands out by itself, and out of the way of other tests of this file.
fn free_port_base() -> u16 {
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
    let start = 10_000 + u16::try_from(std::process::id() % 60).expect("small") * 100;
    loop {
        let base = start + NEXT.fetch_add(2_000, std::sync::atomic::Ordering::SeqCst) % 8_000;
        let ports = [101, 201, 301, 401, 501].into_iter().flat_map(|offset| [base + offset, base + 1_000 + offset]);
        if ports.into_iter().all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return base;
        }
    }
}

/// The parent of a process, unless it is gone: the second field behind the name in brackets.
fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    // The dead are listed until they are waited for.
    (fields.next()? != "Z").then(|| fields.next()?.parse().ok())?
}

fn kill(signal: &str, pid: u32) {
    // The shell's own: not every machine has a program of this name.
    let killed = Command::new("sh").args(["-c", &format!("kill {signal} {pid}")]).status().expect("sh");
    assert!(killed.success(), "{pid} is there to be killed");
}

/// Waits for a state of other processes, of which nobody tells.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn readyz(port: u16) -> String {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return String::new() };
    let asked = stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let mut answer = String::new();
    let _ = asked.and_then(|()| stream.read_to_string(&mut answer));
    answer.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn what_it_calls_ready_is_ready_and_no_child_outlives_a_killed_supervisor() {
    let (mut world, told) = World::start();
    for port in world.admin_ports() {
        assert_eq!(readyz(port), "HTTP/1.1 200 OK", "port {port}");
    }
    let password = std::fs::read_to_string(world.data_dir.join("operator.txt")).expect("readable");
    let password = password.split_ascii_whitespace().nth(1).expect("a password");
    assert!(told.contains(&format!("password {password}")), "{told}");
    world.signal("-KILL");
    world.supervisor.wait().expect("it ends");
    world.until_nobody_listens();
}

#[test]
fn a_child_that_is_killed_is_started_again() {
    let (world, _) = World::start();
    let before = world.children();
    assert_eq!(before.len(), 5);
    for child in &before {
        kill("-KILL", *child);
    }
    until("five new children", || {
        let now = world.children();
        now.len() == 5 && now.iter().all(|child| !before.contains(child))
    });
    for port in world.admin_ports() {
        until("it is ready again", || readyz(port) == "HTTP/1.1 200 OK");
    }
}

#[test]
fn sigterm_ends_everything_with_success() {
    let (mut world, _) = World::start();
    world.signal("-TERM");
    assert!(world.supervisor.wait().expect("it ends").success());
    for port in world.admin_ports() {
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "port {port}: no child is left when it has ended");
    }
}

#[test]
fn a_taken_port_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = free_port_base();
    let _taken = TcpListener::bind(("127.0.0.1", base + 301)).expect("free");
    let out = ordermesh(base, &folder.path().join("data")).output().expect("ends");
    let told = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success());
    assert!(told.contains(&format!("127.0.0.1:{} is taken", base + 301)) && told.contains("--port-base"), "{told}");
}
