//! A NATS server with JetStream in a temporary folder, on a port of 127.0.0.1: the program `nats-server` in PATH.

use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// Runs the server until its stdin closes, which happens at the latest with the test's process: no server outlives it.
/// It is killed, as by a crash.
const KEEPER: &str = r#""$@" 2>&1 & server=$!
read -r word
kill -KILL $server; wait $server"#;

/// A server. It ends with the process, or when it is dropped.
#[derive(Debug)]
pub struct NatsServer {
    folder: TempDir,
    port: u16,
    keeper: Option<Child>,
}

impl NatsServer {
    /// Starts a server; `None`, with one line of output, if the program is missing.
    ///
    /// # Panics
    /// The server cannot be started, or the program is missing and `CI` is set.
    pub fn start() -> Option<Self> {
        match Command::new("nats-server").arg("--version").output() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let message = "nats-server is not in PATH";
                assert!(std::env::var_os("CI").is_none(), "{message}, and CI skips nothing");
                eprintln!("SKIPPED: {message}: .ci/tools.sh nats-server builds it in .ci/bin");
                return None;
            }
            found => drop(found.expect("nats-server runs")),
        }
        let folder = tempfile::tempdir().expect("a folder");
        let (keeper, port) = begin(folder.path(), "-1");
        Some(Self { folder, port, keeper: Some(keeper) })
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Kills the server. What it has acknowledged is stored.
    ///
    /// # Panics
    /// It was killed already.
    pub fn kill(&mut self) {
        let mut keeper = self.keeper.take().expect("a server that runs");
        drop(keeper.stdin.take());
        keeper.wait().expect("an exit status");
    }

    /// Starts it again, with its streams.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn restart(&mut self) {
        let (keeper, _) = begin(self.folder.path(), &self.port.to_string());
        self.keeper = Some(keeper);
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        if self.keeper.is_some() {
            self.kill();
        }
    }
}

/// Returns when the server is ready: its keeper, and its port.
fn begin(folder: &Path, port: &str) -> (Child, u16) {
    let mut keeper = Command::new("sh")
        .args(["-c", KEEPER, "sh", "nats-server", "-a", "127.0.0.1", "-p", port, "-js", "-sd"])
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // The shell reports the kill.
        .stderr(Stdio::null())
        .spawn()
        .expect("sh runs");
    let mut lines = BufReader::new(keeper.stdout.take().expect("its output")).lines();
    let (mut listens, mut output) = (None, String::new());
    loop {
        let Some(line) = lines.next().transpose().expect("text") else { panic!("nats-server has ended:\n{output}") };
        output.push_str(&format!("{line}\n"));
        if let Some((_, address)) = line.split_once("Listening for client connections on ") {
            listens = address.rsplit(':').next().and_then(|port| port.parse().ok());
        }
        if line.ends_with("Server is ready") {
            break;
        }
    }
    // It ends with the server.
    std::thread::spawn(move || lines.for_each(drop));
    (keeper, listens.expect("a line with its port"))
}
