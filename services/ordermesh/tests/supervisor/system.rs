//! A system as a user starts it: the built program, real ports, a temporary folder.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longer than any start or shutdown.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// A running system; killed when it is dropped, if it is still running.
pub(crate) struct TestSystem {
    pub(crate) supervisor: Child,
    pub(crate) port_base: u16,
    _folder: tempfile::TempDir,
    pub(crate) data_dir: std::path::PathBuf,
}

impl TestSystem {
    /// Starts a system with one instance of each service; returns it with its output when it was ready.
    pub(crate) fn start() -> (Self, String) {
        Self::with_instances(1)
    }

    /// Starts a system with this many instances; returns it with its output when it was ready.
    pub(crate) fn with_instances(instances: u16) -> (Self, String) {
        Self::with(instances, &[])
    }

    /// The same, with additional arguments.
    pub(crate) fn with(instances: u16, arguments: &[&str]) -> (Self, String) {
        let folder = tempfile::tempdir().expect("a folder");
        let data_dir = folder.path().join("data");
        let port_base = free_port_base();
        let mut system = system(port_base, &data_dir, instances);
        let mut supervisor = system.args(arguments).stdout(Stdio::piped()).spawn().expect("starts");
        let mut output = String::new();
        let mut lines = BufReader::new(supervisor.stdout.take().expect("piped"));
        while !output.contains("Ctrl-C ends the system") {
            assert!(lines.read_line(&mut output).expect("readable") > 0, "it ended: {output}");
        }
        // The output must be read on: a full pipe would block the supervisor.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        (Self { supervisor, port_base, _folder: folder, data_dir }, output)
    }

    /// Those of each service's first instance.
    pub(crate) fn admin_ports(&self) -> Vec<u16> {
        [101, 201, 301, 401, 501].iter().map(|offset| self.port_base + 1_000 + offset).collect()
    }

    pub(crate) fn signal(&self, signal: &str) {
        kill(signal, self.supervisor.id());
    }

    /// The processes of a service's instances.
    pub(crate) fn processes_of(&self, service: &str) -> Vec<u32> {
        let is_of_it = |pid: &u32| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.split(|byte| *byte == 0).nth(1) == Some(service.as_bytes())
        };
        self.children().into_iter().filter(is_of_it).collect()
    }

    /// A command for this system.
    pub(crate) fn command(&self, name: &str) -> Command {
        let mut command = ordermesh();
        command.args([name, "--port-base", &self.port_base.to_string(), "--data-dir"]).arg(&self.data_dir);
        command
    }

    pub(crate) fn children(&self) -> Vec<u32> {
        let processes = std::fs::read_dir("/proc").expect("Linux").flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| parent(*pid) == Some(self.supervisor.id())).collect()
    }

    pub(crate) fn until_first_admin_ports_are_free(&self) {
        for port in self.admin_ports() {
            until(&format!("port {port} is free"), || TcpStream::connect(("127.0.0.1", port)).is_err());
        }
    }
}

impl Drop for TestSystem {
    fn drop(&mut self) {
        // Its children exit on their own: that is what the tests are about.
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
    }
}

pub(crate) fn ordermesh() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ordermesh"));
    command.env_remove("OTEL_EXPORTER_OTLP_ENDPOINT");
    command
}

/// The program running a whole system.
pub(crate) fn system(port_base: u16, data_dir: &Path, instances: u16) -> Command {
    let mut command = ordermesh();
    command.args(["--instances", &instances.to_string(), "--user.bcrypt-cost", "4"]);
    command.args(["--port-base", &port_base.to_string()]).arg("--data-dir").arg(data_dir);
    command
}

pub(crate) fn free_port_base() -> u16 {
    ordermesh::ports::free_port_base(2).expect("free ports")
}

/// The parent of a process, if it exists: the second field after the name in parentheses.
fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    // Zombies are listed until they are waited for.
    (fields.next()? != "Z").then(|| fields.next()?.parse().ok())?
}

pub(crate) fn kill(signal: &str, pid: u32) {
    // The shell's builtin: not every machine has a `kill` program.
    let killed = Command::new("sh").args(["-c", &format!("kill {signal} {pid}")]).status().expect("sh");
    assert!(killed.success(), "kill {signal} {pid} failed");
}

/// Polls for a state of other processes that nothing notifies about.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !is_so() {
        assert!(Instant::now() < end, "not within {TIMEOUT:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

pub(crate) fn readyz(port: u16) -> String {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return String::new() };
    let requested = stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let mut response = String::new();
    let _ = requested.and_then(|()| stream.read_to_string(&mut response));
    response.lines().next().unwrap_or_default().to_owned()
}
