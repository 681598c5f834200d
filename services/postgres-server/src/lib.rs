//! A private PostgreSQL server in a temporary folder, on its own Unix socket: for tests and `ordermesh chaos --postgres`.
//!
//! It uses the machine's PostgreSQL programs. If there are none, [`Server::start`] says so once and returns `None`; if
//! the environment variable `CI` is set, that is a failure.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Longer than any start takes.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs the server until its stdin closes, which happens at the latest with the test's process: no server outlives it.
/// With the word `keep` the folder is kept, for another start; with `crash` too, but the server ends without a
/// checkpoint.
const KEEPER: &str = r#"folder=$1; shift
"$@" >>"$folder/log" 2>&1 & server=$!
read -r word
signal=INT; [ "$word" != crash ] || signal=QUIT
kill -$signal $server; wait $server
[ -n "$word" ] || rm -rf "$folder""#;

/// A server. It ends with the process, or when it is dropped.
#[derive(Debug)]
pub struct Server {
    programs: PathBuf,
    folder: PathBuf,
    settings: Vec<(String, String)>,
    /// Also the suffix of its socket's name.
    port: u16,
    /// The server's uid and gid, if the process is root: PostgreSQL refuses to run as root.
    account: Option<(u32, u32)>,
    keeper: Mutex<Option<Child>>,
}

impl Server {
    /// Starts a server with additional settings; `None`, with one line of output, if PostgreSQL's programs are missing.
    ///
    /// # Panics
    /// The server cannot be started, or the programs are missing and `CI` is set.
    pub fn start(settings: &[(&str, &str)]) -> Option<Self> {
        let server = Self::new(settings)?;
        let data = server.folder.join("data");
        server.run("initdb", |initdb| {
            initdb
                .args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C", "-U", "postgres", "-D"])
                .arg(data)
        });
        server.begin();
        Some(server)
    }

    /// Like [`Server::start`], but also listens on a port of 127.0.0.1.
    ///
    /// # Panics
    /// As [`Server::start`].
    pub fn start_on_tcp(settings: &[(&str, &str)]) -> Option<Self> {
        let mut server = Self::start(settings)?;
        server.end();
        server.set(free_port(), &[("listen_addresses", "127.0.0.1")]);
        server.begin();
        Some(server)
    }

    /// A standby that follows this server, on its own port, if this one listens on a port. [`Server::promote`] makes it
    /// a primary.
    ///
    /// # Panics
    /// It cannot be created.
    pub fn standby(&self) -> Self {
        let settings: Vec<_> = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut standby = Self::new(&settings).expect("the programs");
        standby.port = free_port();
        let data = standby.folder.join("data");
        standby.run("pg_basebackup", |backup| {
            let backup = backup.args(["-U", "postgres", "-p", &self.port.to_string(), "-R", "-c", "fast", "-h"]);
            backup.arg(&self.folder).arg("-D").arg(data)
        });
        standby.begin();
        standby
    }

    /// Promotes a standby to primary; returns when it accepts writes.
    ///
    /// # Panics
    /// The promotion fails.
    pub fn promote(&self) {
        assert_eq!(self.sql("SELECT pg_promote()"), "t", "{}", self.log());
    }

    fn new(settings: &[(&str, &str)]) -> Option<Self> {
        let Some(programs) = programs() else {
            let message = "PostgreSQL's server programs (initdb, postgres) are not on this machine";
            assert!(std::env::var_os("CI").is_none(), "{message}, and CI skips nothing");
            eprintln!("SKIPPED: {message}: apt-get install postgresql");
            return None;
        };
        let account = account();
        // Short, because a socket's path is limited to 107 bytes; kept, because the keeper deletes it.
        let folder = tempfile::Builder::new().prefix("pg-").tempdir().expect("a folder").keep();
        if let Some((user, group)) = account {
            chown(&folder, Some(user), Some(group)).expect("chown");
        }
        Some(Self {
            programs,
            folder,
            settings: settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            port: 5432,
            account,
            keeper: Mutex::new(None),
        })
    }

    /// Runs one of PostgreSQL's programs to its end.
    fn run(&self, program: &str, arguments: impl FnOnce(&mut Command) -> &mut Command) {
        let mut command = self.command(&self.programs.join(program));
        let made = arguments(&mut command).output().unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(made.status.success(), "{program}: {}", String::from_utf8_lossy(&made.stderr));
    }

    /// The URL of the database `postgres`, over the Unix socket.
    pub fn url(&self) -> String {
        format!("postgres://postgres@localhost:{}/postgres?host={}", self.port, self.folder.display())
    }

    /// Its port: of the socket, and of TCP if `listen_addresses` is set.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of its files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a file that only the server's account can read, for example a key.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn write_private(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.join(name);
        fs::write(&path, content).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        if let Some((user, group)) = self.account {
            chown(&path, Some(user), Some(group)).expect("chown");
        }
        path
    }

    /// Changes settings and the port; they apply from the next start.
    pub fn set(&mut self, port: u16, settings: &[(&str, &str)]) {
        self.port = port;
        self.settings.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    }

    /// Stops the server, with all its connections; [`Server::begin`] starts it again with all committed data.
    ///
    /// # Panics
    /// It does not stop.
    pub fn end(&self) {
        self.end_with("keep\n");
    }

    /// Like [`Server::end`], but as a crash: no checkpoint is written, connections break.
    ///
    /// # Panics
    /// It does not stop.
    pub fn crash(&self) {
        self.end_with("crash\n");
    }

    fn end_with(&self, word: &str) {
        let Some(mut keeper) = self.keeper().take() else { return };
        let mut stdin = keeper.stdin.take().expect("piped");
        stdin.write_all(word.as_bytes()).expect("written");
        drop(stdin);
        keeper.wait().expect("it ends");
    }

    /// Starts the server if it is not running; returns when it answers.
    ///
    /// # Panics
    /// It does not start.
    pub fn begin(&self) {
        let mut keeper = self.keeper();
        if keeper.is_some() {
            return;
        }
        let folder = self.folder.display().to_string();
        let mut command = self.command(Path::new("sh"));
        command.args(["-c", KEEPER, "sh", &folder]).arg(self.programs.join("postgres"));
        command.arg("-D").arg(self.folder.join("data"));
        let port = self.port.to_string();
        let own = [
            ("unix_socket_directories", folder.as_str()),
            ("listen_addresses", ""),
            ("port", port.as_str()),
            ("max_connections", "200"),
            // No data outlives the test.
            ("fsync", "off"),
            ("synchronous_commit", "off"),
            ("full_page_writes", "off"),
        ];
        let given = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in own.into_iter().chain(given) {
            command.args(["-c", &format!("{name}={value}")]);
        }
        *keeper = Some(command.stdin(Stdio::piped()).spawn().expect("sh runs"));
        drop(keeper);
        let end = Instant::now() + TIMEOUT;
        while self.try_sql(&["SELECT 1"]).is_err() {
            assert!(Instant::now() < end, "no server: {}", self.log());
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Runs a statement in the database `postgres`.
    ///
    /// # Panics
    /// The statement fails.
    pub fn sql(&self, statement: &str) -> String {
        self.sql_each(&[statement])
    }

    /// Runs statements in one session, each in its own transaction.
    ///
    /// # Panics
    /// A statement fails.
    pub fn sql_each(&self, statements: &[&str]) -> String {
        self.try_sql(statements).unwrap_or_else(|error| panic!("{statements:?}: {error}"))
    }

    fn try_sql(&self, statements: &[&str]) -> Result<String, String> {
        let mut command = self.command(&self.programs.join("psql"));
        command.args(["-U", "postgres", "-d", "postgres", "-p", &self.port.to_string(), "-v", "ON_ERROR_STOP=1"]);
        command.arg("-h").arg(&self.folder).arg("-Atq");
        for statement in statements {
            command.args(["-c", statement]);
        }
        let output = command.output().expect("psql runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.folder).env("LC_ALL", "C").stdin(Stdio::null());
        if let Some((user, group)) = self.account {
            command.uid(user).gid(group);
        }
        command
    }

    fn keeper(&self) -> parking_lot::MutexGuard<'_, Option<Child>> {
        self.keeper.lock()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut keeper) = self.keeper().take() {
            drop(keeper.stdin.take());
            // The result does not matter: the test has passed or failed already.
            let _ = keeper.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A port that is not in use.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

/// The folder of PostgreSQL's programs, of the newest version: on Debian it is not in PATH.
fn programs() -> Option<PathBuf> {
    let needed = ["initdb", "postgres", "psql", "pg_basebackup"];
    let has_all = |folder: &PathBuf| needed.iter().all(|program| folder.join(program).exists());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path());
    let mut versions: Vec<PathBuf> = debian.map(|version| version.join("bin")).filter(has_all).collect();
    let version = |folder: &PathBuf| -> u32 {
        folder.parent().and_then(|folder| folder.file_name()?.to_str()?.parse().ok()).unwrap_or(0)
    };
    versions.sort_by_key(version);
    std::env::split_paths(&path).find(has_all).or_else(|| versions.pop())
}

/// The account of the server if the process is root: `postgres`, or else `nobody`.
fn account() -> Option<(u32, u32)> {
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let accounts = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = |name: &str| {
        let line = accounts.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut ids = line.split(':').skip(2).map(str::parse);
        Some((ids.next()?.ok()?, ids.next()?.ok()?))
    };
    is_root.then(|| named("postgres").or_else(|| named("nobody"))).flatten()
}
