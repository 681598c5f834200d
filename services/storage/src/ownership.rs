//! Checks the owner and the permissions of files. A folder that others can change, or a secret that others can read, is
//! rejected with a hint, by PostgreSQL's rules for its data folder and private keys (its documentation, "initdb" and
//! "Secure TCP/IP Connections with SSL"): it must belong to the process's user, or to root, and root's secrets may be
//! readable by a group (as Kubernetes mounts them).

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::process::geteuid;

const ROOT: u32 = 0;

/// A file or folder that other users can read or change.
#[derive(Debug, thiserror::Error)]
pub enum Exposed {
    /// It belongs to another user.
    #[error(
        "{path} belongs to the user {owner}, and this process runs as {own}: chown {own} {path}, or run it as {owner}"
    )]
    Foreign {
        /// The path.
        path: PathBuf,
        /// The owner's uid.
        owner: u32,
        /// This process's uid.
        own: u32,
    },
    /// The group or others can change it.
    #[error(
        "{path} can be changed by its group or by others (its mode is {mode:04o}): chmod go-w {path}; where that is not \
         allowed, as on a Kubernetes volume with a group, use a new folder inside of it"
    )]
    Writable {
        /// The path.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The group or others can read a secret.
    #[error(
        "{path} holds a secret, and its group or others have access to it (its mode is {mode:04o}): chmod go= {path}"
    )]
    Readable {
        /// The path.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

/// The kind of file or folder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Others may read it, but not change it.
    Public,
    /// Others may not read it.
    Secret,
}

/// For a folder of the process or a file that is not secret: others must not be able to change it. A missing path is
/// accepted, and so is a read-only mount (by its mode, a Secret's volume is writable).
///
/// # Errors
/// Another user's, or writable by the group or others.
pub fn check_unwritable(path: &Path) -> Result<(), Exposed> {
    let is_read_only = || statvfs(path).is_ok_and(|mount| mount.f_flag.contains(StatVfsMountFlags::RDONLY));
    check(path, Kind::Public).or_else(|exposed| if is_read_only() { Ok(()) } else { Err(exposed) })
}

/// For a secret or a private key: others must not be able to read or change it. A missing file is accepted.
///
/// # Errors
/// Another user's, or accessible to others, or to the group if it is not root's.
pub fn check_secret(path: &Path) -> Result<(), Exposed> {
    check(path, Kind::Secret)
}

fn check(path: &Path, kind: Kind) -> Result<(), Exposed> {
    match std::fs::metadata(path) {
        Ok(found) => judge(path, kind, &found, geteuid().as_raw()),
        // Reading the file will report the error.
        Err(_) => Ok(()),
    }
}

fn judge(path: &Path, kind: Kind, found: &Metadata, own: u32) -> Result<(), Exposed> {
    let (owner, mode, path) = (found.uid(), found.permissions().mode() & 0o7777, path.to_owned());
    let readers = match kind {
        Kind::Public => 0o055,
        Kind::Secret if owner == ROOT => 0o040,
        Kind::Secret => 0,
    };
    let others = mode & 0o077;
    if owner != own && owner != ROOT {
        return Err(Exposed::Foreign { path, owner, own });
    }
    match kind {
        _ if others & !readers == 0 => Ok(()),
        Kind::Public => Err(Exposed::Writable { path, mode }),
        Kind::Secret => Err(Exposed::Readable { path, mode }),
    }
}

/// Makes a database's file private if it is ours, since an earlier release may have created it readable for others.
pub(crate) fn tighten(file: &Path) -> io::Result<Result<(), Exposed>> {
    let found = match std::fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ok(())),
        found => found?,
    };
    let (own, mode) = (geteuid().as_raw(), found.permissions().mode());
    if found.uid() == own && mode & 0o077 != 0 {
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode & 0o7700))?;
        return Ok(Ok(()));
    }
    Ok(judge(file, Kind::Secret, &found, own))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_mode(path: &Path, mode: u32) -> Metadata {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("own file");
        std::fs::metadata(path).expect("metadata")
    }

    #[test]
    fn writable_files_and_readable_secrets_are_rejected() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("secret");
        std::fs::write(&file, "s").expect("written");
        let own = std::fs::metadata(&file).expect("metadata").uid();
        // The test runs as any user: root's rule applies only if the owner is root.
        let group_reads_roots = own == ROOT;
        #[rustfmt::skip]
        let table = [
            (0o600, true,  true),
            (0o400, true,  true),
            (0o640, true,  group_reads_roots),
            (0o440, true,  group_reads_roots),
            (0o644, true,  false),
            (0o604, true,  false),
            (0o660, false, false),
            (0o602, false, false),
            (0o700, true,  true),
            (0o755, true,  false),
            (0o775, false, false),
            (0o1777, false, false),
        ];
        for (mode, as_public, as_secret) in table {
            let found = with_mode(&file, mode);
            assert_eq!(judge(&file, Kind::Public, &found, own).is_ok(), as_public, "{mode:o}");
            assert_eq!(judge(&file, Kind::Secret, &found, own).is_ok(), as_secret, "{mode:o}");
        }
        let message = judge(&file, Kind::Secret, &with_mode(&file, 0o644), own).expect_err("readable").to_string();
        assert!(message.contains("0644") && message.ends_with(&format!("chmod go= {}", file.display())), "{message}");
        let message = judge(&file, Kind::Public, &with_mode(&file, 0o620), own).expect_err("writable").to_string();
        assert!(message.contains(&format!("chmod go-w {};", file.display())), "{message}");
    }

    #[test]
    fn files_of_another_user_are_rejected_and_those_of_root_are_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let found = with_mode(folder.path(), 0o700);
        let other = found.uid() + 1;
        let judged = judge(folder.path(), Kind::Public, &found, other);
        if found.uid() == ROOT {
            assert!(judged.is_ok(), "root can do everything anyway");
        } else {
            assert!(judged.is_err_and(|message| message.to_string().contains(&format!("chown {other} "))));
        }
        // Only root can give files away.
        if std::os::unix::fs::chown(folder.path(), Some(65_534), None).is_ok() {
            let message = check_unwritable(folder.path()).expect_err("another user's").to_string();
            assert!(message.contains("belongs to the user 65534"), "{message}");
            assert!(check_secret(folder.path()).is_err());
            assert!(tighten(folder.path()).expect("metadata").is_err());
        }
    }

    #[test]
    fn a_missing_file_is_accepted() {
        let nowhere = Path::new("/nowhere/at/all");
        assert!(check_secret(nowhere).is_ok() && check_unwritable(nowhere).is_ok());
        assert!(matches!(tighten(nowhere), Ok(Ok(()))));
    }
}
