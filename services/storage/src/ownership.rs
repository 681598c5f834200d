//! Whose files these are. A folder that somebody else may change, or a secret that somebody else may read, is refused with what
//! to do about it, by PostgreSQL's rules for its data folder and private keys (its documentation, "initdb" and "Secure TCP/IP
//! Connections with SSL"): they belong to the process's user, or to root, whose secrets a group may read (as Kubernetes
//! mounts them).

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::process::geteuid;

const ROOT: u32 = 0;

/// A file or folder that somebody else may read or change.
#[derive(Debug, thiserror::Error)]
pub enum Exposed {
    /// Its owner can do with it what it likes.
    #[error(
        "{path} belongs to the user {owner}, and this process runs as {own}: chown {own} {path}, or run it as {owner}"
    )]
    Foreign {
        /// Which one.
        path: PathBuf,
        /// The owner's uid.
        owner: u32,
        /// This process's uid.
        own: u32,
    },
    /// Others can change it.
    #[error(
        "{path} can be changed by its group or by others (its mode is {mode:04o}): chmod go-w {path}; where that is not \
         allowed, as on a Kubernetes volume with a group, use a new folder inside of it"
    )]
    Writable {
        /// Which one.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Others can read the secret in it.
    #[error(
        "{path} holds a secret, and its group or others have access to it (its mode is {mode:04o}): chmod go= {path}"
    )]
    Readable {
        /// Which one.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

/// What a file or folder is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Others may read it, and not change it.
    Public,
    /// Others may not read it either.
    Secret,
}

/// A folder of one's own, or a file that is no secret: nobody else may change it. One that is not there is not looked at, and
/// neither is one that is mounted for reading alone (a Secret's volume can be written to by its mode).
///
/// # Errors
/// Another user's, or one that the group or others may write to.
pub fn check_unwritable(path: &Path) -> Result<(), Exposed> {
    let is_read_only = || statvfs(path).is_ok_and(|mount| mount.f_flag.contains(StatVfsMountFlags::RDONLY));
    check(path, Kind::Public).or_else(|exposed| if is_read_only() { Ok(()) } else { Err(exposed) })
}

/// A secret or a private key: nobody else may read or change it. One that is not there is not looked at.
///
/// # Errors
/// Another user's, or one that others, or the group of one that is not root's, have access to.
pub fn check_secret(path: &Path) -> Result<(), Exposed> {
    check(path, Kind::Secret)
}

fn check(path: &Path, kind: Kind) -> Result<(), Exposed> {
    match std::fs::metadata(path) {
        Ok(found) => judge(path, kind, &found, geteuid().as_raw()),
        // Whoever reads it says why it cannot be read.
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

/// A database's file: one that is ours becomes readable by nobody else, as it was not when an earlier release made it.
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
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("ours");
        std::fs::metadata(path).expect("it is there")
    }

    #[test]
    fn what_others_may_change_and_secrets_that_others_may_read_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("secret");
        std::fs::write(&file, "s").expect("written");
        let own = std::fs::metadata(&file).expect("it is there").uid();
        // The test runs as any user: root's rule is taken only where the owner is root.
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
        let told = judge(&file, Kind::Secret, &with_mode(&file, 0o644), own).expect_err("readable").to_string();
        assert!(told.contains("0644") && told.ends_with(&format!("chmod go= {}", file.display())), "{told}");
        let told = judge(&file, Kind::Public, &with_mode(&file, 0o620), own).expect_err("writable").to_string();
        assert!(told.contains(&format!("chmod go-w {};", file.display())), "{told}");
    }

    #[test]
    fn what_belongs_to_another_user_is_refused_and_what_root_owns_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let found = with_mode(folder.path(), 0o700);
        let other = found.uid() + 1;
        let judged = judge(folder.path(), Kind::Public, &found, other);
        if found.uid() == ROOT {
            assert!(judged.is_ok(), "root can do everything anyway");
        } else {
            assert!(judged.is_err_and(|told| told.to_string().contains(&format!("chown {other} "))));
        }
        // Whoever can give files away, which is root alone.
        if std::os::unix::fs::chown(folder.path(), Some(65_534), None).is_ok() {
            let told = check_unwritable(folder.path()).expect_err("another's").to_string();
            assert!(told.contains("belongs to the user 65534"), "{told}");
            assert!(check_secret(folder.path()).is_err());
            assert!(tighten(folder.path()).expect("it is there").is_err());
        }
    }

    #[test]
    fn what_is_not_there_is_for_its_reader_to_tell() {
        let nowhere = Path::new("/nowhere/at/all");
        assert!(check_secret(nowhere).is_ok() && check_unwritable(nowhere).is_ok());
        assert!(matches!(tighten(nowhere), Ok(Ok(()))));
    }
}
