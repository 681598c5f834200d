//! The folder of a system on this machine: databases, keys, and the secrets that are made on the first start.

use std::fs;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use storage::ownership::{check_secret, check_unwritable};

use crate::certificates::{Certificates, Wish};
use crate::error::Error;
use crate::service::Service;

/// The account of the first start.
pub(crate) const OPERATOR_EMAIL: &str = "operator@ordermesh.local";

/// How often, and after which pause, the folder's lock is tried.
const LOCK_TRIES: u32 = 20;
const LOCK_AGAIN: Duration = Duration::from_millis(15);

/// The folder of a system.
#[derive(Clone, Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    first_start: bool,
    /// Locked while the system runs: two systems in one folder would take each other's instances for their own.
    _lock: Arc<fs::File>,
}

/// Somebody's e-mail and password. Its Debug does not show the password.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) email: String,
    pub(crate) password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("email", &self.email).finish_non_exhaustive()
    }
}

impl DataDir {
    /// Makes the folder and whatever secret is missing. An operator is made up on the first start only: on a later one
    /// the User Service has its accounts, and a password made up now would be nobody's.
    ///
    /// # Errors
    /// A folder or file that cannot be made.
    pub(crate) fn prepare(path: &Path) -> Result<Self, Error> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(file(path, "made"))?;
        let path = path.canonicalize().map_err(file(path, "found"))?;
        check_unwritable(&path)?;
        for name in ["mesh.secret", "gateway.key", "operator.txt"] {
            check_secret(&path.join(name))?;
        }
        let lock = fs::File::create(path.join(".lock")).map_err(file(&path, "locked"))?;
        if !is_locked(&lock) {
            return Err(Error::Usage(format!(
                "a system runs on {} already; end it, or choose another --data-dir (and --port-base)",
                path.display()
            )));
        }
        // On PostgreSQL there is no file of accounts: the password is made up where none was.
        let first_start = !path.join("user.db").exists() && !path.join("operator.txt").exists();
        let dir = Self { first_start, path, _lock: Arc::new(lock) };
        dir.write_once("mesh.secret", &random_secret())?;
        dir.write_once("gateway.key", &random_secret())?;
        if dir.first_start {
            dir.write_once("operator.txt", &format!("{OPERATOR_EMAIL} {}", random_password()))?;
        }
        Ok(dir)
    }

    /// Its absolute path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Was it empty?
    pub(crate) fn is_first_start(&self) -> bool {
        self.first_start
    }

    /// The gateway's API key.
    pub(crate) fn gateway_key(&self) -> PathBuf {
        self.path.join("gateway.key")
    }

    /// The first operator's e-mail and password; `None` when somebody has taken the file away.
    pub(crate) fn operator_file(&self) -> Option<PathBuf> {
        Some(operator_file(&self.path)).filter(|file| file.exists())
    }

    /// The roots of a system with `--tls`.
    pub(crate) fn roots(&self) -> PathBuf {
        Certificates::in_folder(certificates_dir(&self.path)).roots()
    }

    /// A certificate authority of its own, and a new certificate for each service, in the folder's `certs`.
    ///
    /// # Errors
    /// A file that cannot be written, or an authority that cannot be used any more.
    pub(crate) fn certificates(&self) -> Result<Certificates, Error> {
        let certificates = Certificates::in_folder(certificates_dir(&self.path));
        certificates.make(&Wish::LOCAL, Service::ALL.map(Service::name))?;
        Ok(certificates)
    }

    /// Writes a file that only its owner reads, unless it is there: whole, or not at all.
    fn write_once(&self, name: &str, text: &str) -> Result<(), Error> {
        let path = self.path.join(name);
        if path.exists() {
            return Ok(());
        }
        let written = (|| {
            let mut new = tempfile::Builder::new().prefix(".new-").tempfile_in(&self.path)?;
            writeln!(new, "{text}")?;
            new.as_file().sync_all()?;
            new.persist_noclobber(&path)?;
            Ok(())
        })();
        written.map_err(file(&path, "written"))
    }
}

/// Locks it for this process. A child that has just been forked off holds all locks of its parent until it is its own
/// program: so more than one try.
fn is_locked(file: &fs::File) -> bool {
    (0..LOCK_TRIES).any(|attempt| {
        if attempt > 0 {
            std::thread::park_timeout(LOCK_AGAIN);
        }
        file.try_lock().is_ok()
    })
}

/// Where the certificates of a system with `--tls` are.
pub(crate) fn certificates_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("certs")
}

/// Where the first operator's e-mail and password are.
pub(crate) fn operator_file(data_dir: &Path) -> PathBuf {
    data_dir.join("operator.txt")
}

/// Reads an operator's e-mail and password.
///
/// # Errors
/// A file that cannot be read, or holds something else.
pub(crate) fn read_operator(path: &Path) -> Result<Login, Error> {
    let text = fs::read_to_string(path).map_err(file(path, "read"))?;
    match text.trim().split_once(' ') {
        Some((email, password)) => Ok(Login { email: email.to_owned(), password: password.to_owned() }),
        None => Err(Error::OperatorFile { path: path.to_owned() }),
    }
}

fn file(path: &Path, deed: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { path, deed, source }
}

/// 256 random bits.
fn random_secret() -> String {
    rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// 100 random bits that a person can type: no letters that look like others.
fn random_password() -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    (0..20).map(|_| char::from(LETTERS[usize::from(rand::random::<u8>() % 32)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn secrets_are_made_once_and_only_their_owner_reads_them() {
        let temporary = tempfile::tempdir().expect("a folder");
        let path = temporary.path().join("data");
        let first = DataDir::prepare(&path).expect("prepared");
        assert!(first.is_first_start());
        let before = fs::read_to_string(path.join("mesh.secret")).expect("readable");
        assert_eq!(before.trim().len(), 64);
        for name in ["mesh.secret", "gateway.key", "operator.txt"] {
            let mode = fs::metadata(path.join(name)).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        fs::write(path.join("user.db"), "").expect("written");
        let refused = DataDir::prepare(&path).expect_err("one system a folder").to_string();
        assert!(refused.contains("--data-dir"), "{refused}");
        drop(first);
        let second = DataDir::prepare(&path).expect("prepared");
        assert!(!second.is_first_start());
        assert_eq!(fs::read_to_string(path.join("mesh.secret")).expect("readable"), before);
    }

    #[test]
    fn a_folder_that_others_may_write_to_and_a_secret_that_they_may_read_are_refused_with_what_to_do() {
        let temporary = tempfile::tempdir().expect("a folder");
        let path = temporary.path().join("data");
        drop(DataDir::prepare(&path).expect("prepared"));
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
        let refused = |changed: &Path, told: &str| {
            let error = DataDir::prepare(&path).expect_err("exposed");
            assert_eq!(error.exit_code(), 2);
            let told = format!("{told} {}", changed.canonicalize().expect("it is there").display());
            assert!(error.to_string().contains(&told), "{error}");
        };
        set(&path, 0o777);
        refused(&path, "chmod go-w");
        // As a person makes it, and as an earlier release took it.
        set(&path, 0o755);
        drop(DataDir::prepare(&path).expect("nobody else writes to it"));
        for name in ["mesh.secret", "gateway.key", "operator.txt"] {
            let secret = path.join(name);
            set(&secret, 0o644);
            refused(&secret, "chmod go=");
            set(&secret, 0o600);
        }
        drop(DataDir::prepare(&path).expect("as before"));
    }

    #[test]
    fn the_operator_is_read_as_written_and_never_printed() {
        let temporary = tempfile::tempdir().expect("a folder");
        DataDir::prepare(temporary.path()).expect("prepared");
        let login = read_operator(&operator_file(temporary.path())).expect("readable");
        assert_eq!(login.email, OPERATOR_EMAIL);
        assert_eq!(login.password.len(), 20);
        assert!(!format!("{login:?}").contains(&login.password));
    }

    #[test]
    fn no_operator_is_made_up_for_accounts_that_are_there() {
        let temporary = tempfile::tempdir().expect("a folder");
        fs::write(temporary.path().join("user.db"), "").expect("written");
        let dir = DataDir::prepare(temporary.path()).expect("prepared");
        assert_eq!(dir.operator_file(), None);
    }
}
