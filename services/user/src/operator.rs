//! Operators' accounts. No call creates one: they are created by a command or, at the first start, from a file.

use std::fmt;
use std::future::Future;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chassis::{Fields, audit};
use kernel::{Clock, IdSource, SystemClock, SystemIds, UserId};
use telemetry::{EventSink, Operation};
use tokio::sync::watch;

use crate::account::{Account, Profile, Role};
use crate::convert;
use crate::error::Error;
use crate::hashing_permits::Share;
use crate::migration::MIGRATIONS;
use crate::password::{Password, Passwords};
use crate::settings::Config;
use crate::store::{Inserted, Store};

/// The operation that creates an operator's account.
pub(crate) const CREATE: &str = "operator.create";
const DISPLAY_NAME: &str = "Operator";

/// The credentials of a new operator.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    pub(crate) email: String,
    pub(crate) password: Password,
}

/// Why the operator's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// It cannot be read.
    #[error("the operator's file {path} cannot be read")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Another user can read or change it.
    #[error("the operator's file cannot be used")]
    Exposed(#[from] storage::ownership::Exposed),
    /// It does not have the expected form.
    #[error("the operator's file {path} must hold one line, as in `operator@example.com PASSWORD`")]
    Malformed { path: PathBuf },
    /// The e-mail or the password breaks the rules.
    #[error("the operator's file {path} breaks a rule")]
    Rule {
        path: PathBuf,
        #[source]
        source: chassis::Invalid,
    },
}

impl Credentials {
    /// Checks the rules of Register.
    pub(crate) fn checked(email: &str, password: &str) -> Result<Self, chassis::Invalid> {
        let mut fields = Fields::default();
        // It is read at every start, and a file that an earlier release accepted must not prevent the service from
        // starting.
        let email = fields.known_email("email", email);
        let password = convert::new_password(&mut fields, "password", password);
        fields.finish(email.zip(password)).map(|(email, password)| Self { email, password })
    }

    /// Reads `EMAIL PASSWORD` from the file's one line.
    pub(crate) fn from_file(path: &Path) -> Result<Self, FileError> {
        storage::ownership::check_secret(path)?;
        let text = std::fs::read_to_string(path).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
        let line = text.trim();
        let Some((email, password)) = line.split_once(' ').filter(|_| !line.contains('\n')) else {
            return Err(FileError::Malformed { path: path.to_owned() });
        };
        Self::checked(email, password.trim()).map_err(|source| FileError::Rule { path: path.to_owned(), source })
    }
}

/// Creates an operator's account.
pub(crate) async fn create(
    store: &Store,
    passwords: &Passwords,
    credentials: Credentials,
    clock: &dyn Clock,
    ids: &dyn IdSource,
    operation: &Operation,
) -> Result<UserId, Error> {
    operation.set("account.role", Role::Operator.name());
    let Credentials { email, password } = credentials;
    if store.account_by_email(&email).await?.is_some() {
        return Err(Error::EmailTaken);
    }
    let busy = |retry_after| Error::TooManyRequests { retry_after };
    let password_hash = passwords
        .hash(password, Share::of_address(Ipv4Addr::UNSPECIFIED.into()))
        .await
        .map_err(|rejected| rejected.or_busy(busy))?;
    let (user_id, now) = (UserId::from_uuid(ids.uuid()), clock.now());
    let profile = Profile {
        user_id,
        email,
        display_name: DISPLAY_NAME.to_owned(),
        phone: None,
        address: None,
        role: Role::Operator,
        created: now,
        updated: now,
    };
    match store.insert_account(&Account { profile, password_hash, origin: None }, operation).await? {
        Inserted::Created => Ok(user_id),
        Inserted::Taken => Err(Error::EmailTaken),
    }
}

/// Creates an operator's account in the database of these settings, after migrating its schema. For `ordermesh operator
/// create`: no call creates an operator.
///
/// # Errors
/// The e-mail or the password breaks the rules, the e-mail is taken, or the database failed.
pub async fn create_operator(config: &Config, email: &str, password: &str) -> Result<UserId, Error> {
    let credentials = Credentials::checked(email, password)?;
    let db = config.common.open_database("user", MIGRATIONS).await?;
    let passwords = Passwords::new(config.bcrypt_cost, 0);
    let operation = audit::of_command(CREATE, Arc::new(audit::CommandSink("user")));
    create(&Store::new(db), &passwords, credentials, &SystemClock, &SystemIds, &operation).await
}

/// The bootstrap operator, whose account is created while the service already serves.
#[derive(Clone)]
pub(crate) struct Bootstrap {
    email: String,
    is_done: watch::Receiver<bool>,
}

impl fmt::Debug for Bootstrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bootstrap").field("email", &self.email).finish_non_exhaustive()
    }
}

impl Bootstrap {
    /// The bootstrap, and the future that does its work.
    pub(crate) fn new(
        store: Store,
        passwords: Passwords,
        credentials: Credentials,
        events: Arc<dyn EventSink>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (done, is_done) = watch::channel(false);
        let email = credentials.email.clone();
        let work = async move {
            create_once(&store, &passwords, credentials, events).await;
            // Whatever the outcome, waiting log-ins go on. If this future is dropped, the channel closes, with the same
            // effect.
            done.send_replace(true);
        };
        (Self { email, is_done }, work)
    }

    /// If the e-mail is the operator's, waits until its account has been created or has failed to be.
    pub(crate) async fn done(&self, email: &str) {
        if email == self.email {
            let _ = self.is_done.clone().wait_for(|done| *done).await;
        }
    }
}

async fn create_once(store: &Store, passwords: &Passwords, credentials: Credentials, events: Arc<dyn EventSink>) {
    let email = credentials.email.clone();
    let operation = audit::of_command(CREATE, events);
    match create(store, passwords, credentials, &SystemClock, &SystemIds, &operation).await {
        Ok(_) => tracing::info!(target: "ordermesh", "the operator's account {email} was created"),
        Err(Error::EmailTaken) => match store.account_by_email(&email).await {
            Ok(Some(account)) if account.profile.role != Role::Operator => {
                tracing::warn!(target: "ordermesh", "{email} is a customer's account: no operator's account was created");
            }
            Ok(_) | Err(_) => {}
        },
        Err(error) => {
            tracing::error!(target: "ordermesh", "the operator's account {email} could not be created: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Credentials, FileError> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("operator.txt");
        testkit::write_secret(&path, text);
        Credentials::from_file(&path)
    }

    #[test]
    fn the_file_has_one_line_with_an_email_and_a_password() {
        let credentials = read("Operator@ordermesh.local correct horse\n").expect("valid");
        assert_eq!(credentials.email, "operator@ordermesh.local");
        assert!(matches!(read("operator@ordermesh.local"), Err(FileError::Malformed { .. })));
        assert!(matches!(read("a@b.c secret-enough\nd@e.f secret-enough\n"), Err(FileError::Malformed { .. })));
        assert!(matches!(read("operator@ordermesh.local short"), Err(FileError::Rule { .. })));
        assert!(matches!(Credentials::from_file(Path::new("/nowhere/at/all")), Err(FileError::Read { .. })));
    }
}
