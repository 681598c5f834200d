//! The folder of a local system: databases, keys, and the secrets generated on the first start.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Access, access};
use storage::ownership::{check_secret, check_unwritable};

use crate::certificates::{CertificateRequest, Certificates};
use crate::error::Error;
use crate::service::Service;

/// The operator account created on the first start.
pub(crate) const OPERATOR_EMAIL: &str = "operator@ordermesh.local";

/// How often, and at which interval, locking the folder is tried.
const LOCK_TRIES: u32 = 20;
const LOCK_AGAIN: Duration = Duration::from_millis(15);

/// The folder of a local system.
#[derive(Clone, Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    first_start: bool,
    /// Locked while the system runs: two systems in one folder would each treat the other's instances as their own.
    _lock: Arc<fs::File>,
}

/// An account's e-mail and password. Debug omits the password.
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
    /// Creates the folder and its missing secrets. An operator is generated on the first start only: later the User
    /// Service has its accounts, and a new password would belong to none of them.
    ///
    /// # Errors
    /// A folder or file that cannot be created.
    pub(crate) fn prepare(path: &Path) -> Result<Self, Error> {
        let path = make_folder(path).map_err(unusable(path))?;
        check_unwritable(&path)?;
        for name in ["mesh.secret", "gateway.key", "operator.txt"] {
            check_secret(&path.join(name))?;
        }
        let lock = fs::File::create(path.join(".lock")).map_err(unusable(&path))?;
        if !is_locked(&lock) {
            return Err(Error::Usage(format!(
                "a system is already running on {}; stop it, or choose another --data-dir (and --port-base)",
                path.display()
            )));
        }
        // On PostgreSQL there is no database file: then the operator's file alone marks the first start.
        let first_start = !path.join("user.db").exists() && !path.join("operator.txt").exists();
        let dir = Self { first_start, path, _lock: Arc::new(lock) };
        dir.write_once("mesh.secret", &random_secret())?;
        dir.write_once("gateway.key", &random_secret())?;
        if dir.first_start {
            dir.write_once("operator.txt", &format!("{OPERATOR_EMAIL} {}", random_password()))?;
        }
        Ok(dir)
    }

    /// The absolute path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the folder was new.
    pub(crate) fn is_first_start(&self) -> bool {
        self.first_start
    }

    /// The gateway's API key.
    pub(crate) fn gateway_key(&self) -> PathBuf {
        self.path.join("gateway.key")
    }

    /// The first operator's e-mail and password; `None` if the file was removed.
    pub(crate) fn operator_file(&self) -> Option<PathBuf> {
        Some(operator_file(&self.path)).filter(|file| file.exists())
    }

    /// The root certificates of a system with `--tls`.
    pub(crate) fn roots(&self) -> PathBuf {
        Certificates::in_folder(certificates_dir(&self.path)).roots()
    }

    /// A dedicated certificate authority, and a new certificate for each service, in the folder's `certs`.
    ///
    /// # Errors
    /// A file that cannot be written, or a CA that can no longer be used.
    pub(crate) fn certificates(&self) -> Result<Certificates, Error> {
        let certificates = Certificates::in_folder(certificates_dir(&self.path));
        certificates.make(&CertificateRequest::LOCAL, Service::ALL.map(Service::name))?;
        Ok(certificates)
    }

    /// Atomically writes a file that only its owner can read, unless it exists.
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
        written.map_err(unusable(&self.path))
    }
}

/// Creates the folder unless it exists, and checks that this user can write to it: a service would find out later, and be
/// restarted again and again.
fn make_folder(path: &Path) -> io::Result<PathBuf> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| {
        let is_taken = error.kind() == io::ErrorKind::AlreadyExists;
        if is_taken { io::Error::other("it is a file, not a folder") } else { error }
    })?;
    access(path, Access::WRITE_OK | Access::EXEC_OK)?;
    path.canonicalize()
}

/// Locks a file for this process. A child that has just been forked holds its parent's locks until it calls exec: hence
/// several attempts.
fn is_locked(file: &fs::File) -> bool {
    (0..LOCK_TRIES).any(|attempt| {
        if attempt > 0 {
            std::thread::park_timeout(LOCK_AGAIN);
        }
        file.try_lock().is_ok()
    })
}

/// The certificates' folder of a system with `--tls`.
pub(crate) fn certificates_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("certs")
}

/// The file with the first operator's e-mail and password.
pub(crate) fn operator_file(data_dir: &Path) -> PathBuf {
    data_dir.join("operator.txt")
}

/// Reads an operator's e-mail and password.
///
/// # Errors
/// A file that cannot be read, or has other contents.
pub(crate) fn read_operator(path: &Path) -> Result<Login, Error> {
    let text = fs::read_to_string(path).map_err(file(path, "read"))?;
    match text.trim().split_once(' ') {
        Some((email, password)) => Ok(Login { email: email.to_owned(), password: password.to_owned() }),
        None => Err(Error::OperatorFile { path: path.to_owned() }),
    }
}

fn unusable(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::DataFolder { path, source }
}

fn file(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { path, action, source }
}

/// 256 random bits.
fn random_secret() -> String {
    rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// 100 random bits in a form that is easy to type: no characters that look alike.
fn random_password() -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    (0..20).map(|_| char::from(LETTERS[usize::from(rand::random::<u8>() % 32)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn secrets_are_generated_once_and_readable_by_their_owner_only() {
        let temporary = tempfile::tempdir().expect("a folder");
        let path = temporary.path().join("data");
        let first = DataDir::prepare(&path).expect("prepared");
        assert!(first.is_first_start());
        let before = fs::read_to_string(path.join("mesh.secret")).expect("readable");
        assert_eq!(before.trim().len(), 64);
        for name in ["mesh.secret", "gateway.key", "operator.txt"] {
            let mode = fs::metadata(path.join(name)).expect("the secret exists").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        fs::write(path.join("user.db"), "").expect("written");
        let error = DataDir::prepare(&path).expect_err("one system a folder").to_string();
        assert!(error.contains("--data-dir"), "{error}");
        drop(first);
        let second = DataDir::prepare(&path).expect("prepared");
        assert!(!second.is_first_start());
        assert_eq!(fs::read_to_string(path.join("mesh.secret")).expect("readable"), before);
    }

    #[test]
    fn a_folder_writable_and_a_secret_readable_by_others_are_rejected_with_a_remedy() {
        let temporary = tempfile::tempdir().expect("a folder");
        let path = temporary.path().join("data");
        drop(DataDir::prepare(&path).expect("prepared"));
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
        let rejects = |changed: &Path, advice: &str| {
            let error = DataDir::prepare(&path).expect_err("exposed");
            assert_eq!(error.exit_code(), 2);
            let advice = format!("{advice} {}", changed.canonicalize().expect("it exists").display());
            assert!(error.to_string().contains(&advice), "{error}");
        };
        set(&path, 0o777);
        rejects(&path, "chmod go-w");
        // As mkdir creates it, and as an earlier release accepted it.
        set(&path, 0o755);
        drop(DataDir::prepare(&path).expect("only the owner may write to it"));
        for name in ["mesh.secret", "gateway.key", "operator.txt"] {
            let secret = path.join(name);
            set(&secret, 0o644);
            rejects(&secret, "chmod go=");
            set(&secret, 0o600);
        }
        drop(DataDir::prepare(&path).expect("as before"));
    }

    #[test]
    fn a_folder_that_cannot_be_used_is_reported_with_a_remedy() {
        let temporary = tempfile::tempdir().expect("a folder");
        let taken = temporary.path().join("file");
        fs::write(&taken, "").expect("written");
        for (path, why) in [(taken.as_path(), "it is a file"), (Path::new("/proc/data"), "because ")] {
            let error = DataDir::prepare(path).expect_err("unusable");
            assert_eq!(error.exit_code(), 2);
            let report = error.report();
            assert!(report.contains("choose another with --data-dir") && report.contains(why), "{report}");
        }
    }

    #[test]
    fn the_operator_is_read_as_written_and_its_password_never_printed() {
        let temporary = tempfile::tempdir().expect("a folder");
        DataDir::prepare(temporary.path()).expect("prepared");
        let login = read_operator(&operator_file(temporary.path())).expect("readable");
        assert_eq!(login.email, OPERATOR_EMAIL);
        assert_eq!(login.password.len(), 20);
        assert!(!format!("{login:?}").contains(&login.password));
    }

    #[test]
    fn no_operator_is_generated_if_accounts_exist() {
        let temporary = tempfile::tempdir().expect("a folder");
        fs::write(temporary.path().join("user.db"), "").expect("written");
        let dir = DataDir::prepare(temporary.path()).expect("prepared");
        assert_eq!(dir.operator_file(), None);
    }
}
