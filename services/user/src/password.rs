//! Passwords and their bcrypt hashes. Hashing takes a large part of a second of a processor, so it runs on threads of
//! its own with a low scheduling priority, at most one per processor, with permits that callers share fairly
//! (`hashing_permits`): a burst of log-ins does not delay orders.
//!
//! A password is compared in a normalized form (RFC 8265), so that it does not depend on the keyboard. Earlier releases
//! hashed it as typed: such a hash is still valid, and is renewed at the next log-in.
//!
//! The time of an operation does not reveal whether an account exists.

use std::hint::black_box;
use std::time::Duration;

use bcrypt::{HashParts, non_truncating_hash, non_truncating_hash_with_salt, non_truncating_verify};

use kernel::Secret;
use tokio::sync::oneshot;

use crate::error::Error;
use crate::hashing_permits::{HashingPermits, QueueFull, Share};

/// bcrypt takes 72 bytes, one of which is the terminating zero.
pub(crate) const MAX_PASSWORD_BYTES: usize = 71;
/// In characters, which are code points (NIST SP 800-63B, 5.1.1.2).
pub(crate) const MIN_PASSWORD_CHARS: usize = 8;

/// The nice value of the threads that hash: beside a thread of the usual priority they get a tenth of a processor.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

#[derive(Clone, Debug)]
pub(crate) struct Password {
    /// OpaqueString of RFC 8265. Limits apply to its length, not to that of the typed text.
    prepared: Secret<String>,
    /// As typed, if that differs and is short enough to have been hashed.
    typed: Option<Secret<String>>,
}

impl Password {
    /// Accepts a text of any length: the rules are in convert.rs.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        let text = text.into();
        let prepared = kernel::text::opaque(&text);
        let typed = (text != prepared && text.len() <= MAX_PASSWORD_BYTES).then_some(text);
        Self { prepared: Secret::new(prepared), typed: typed.map(Secret::new) }
    }

    /// In characters.
    pub(crate) fn length(&self) -> usize {
        self.prepared.expose().chars().count()
    }

    /// Whether it can be hashed.
    pub(crate) fn fits(&self) -> bool {
        self.prepared.expose().len() <= MAX_PASSWORD_BYTES
    }

    /// Whether a stored hash can be one of it.
    pub(crate) fn may_be_known(&self) -> bool {
        self.fits() || self.typed.is_some()
    }

    /// The forms that a stored hash can be of, the current form first.
    fn forms(&self) -> impl Iterator<Item = &str> {
        let prepared = self.fits().then_some(&self.prepared);
        prepared.into_iter().chain(&self.typed).map(|form| form.expose().as_str())
    }
}

/// A password's bcrypt hash: a secret too, since guesses can be checked against it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PasswordHash(Secret<String>);

impl PasswordHash {
    pub(crate) fn from_stored(text: String) -> Self {
        Self(Secret::new(text))
    }

    pub(crate) fn as_stored(&self) -> &str {
        self.0.expose()
    }

    fn cost(&self) -> Result<u32, Error> {
        Ok(self.as_stored().parse::<HashParts>().map_err(Error::Hash)?.get_cost())
    }
}

/// The outcome of a check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Check {
    Mismatch,
    Match,
    /// A match, with a new hash of the current cost to store.
    Renewed(PasswordHash),
}

/// Why a password was not hashed or checked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HashError {
    #[error("too many passwords wait to be hashed")]
    Busy,
    #[error(transparent)]
    Failed(#[from] Error),
}

impl HashError {
    /// The caller's error; `busy` makes the error of the method.
    pub(crate) fn or_busy(self, busy: impl FnOnce(Duration) -> Error) -> Error {
        match self {
            Self::Busy => busy(Duration::from_secs(1)),
            Self::Failed(error) => error,
        }
    }
}

/// Hashes and checks passwords. Clones share the permits.
#[derive(Clone, Debug)]
pub(crate) struct Passwords {
    cost: u32,
    /// One permit per processor.
    permits: HashingPermits,
}

impl Passwords {
    /// With the bcrypt cost and the length of the queue.
    pub(crate) fn new(cost: u32, max_waiting: usize) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { cost, permits: HashingPermits::new(processors, max_waiting) }
    }

    /// Without permits: every call is rejected.
    #[cfg(test)]
    pub(crate) fn full() -> Self {
        Self { cost: 4, permits: HashingPermits::new(0, 0) }
    }

    pub(crate) async fn hash(&self, password: Password, share: Share) -> Result<PasswordHash, HashError> {
        let cost = self.cost;
        self.spawn_with_permit(share, move || hash(&password, cost)).await
    }

    /// Checks the account's password. Without an account (`None`) it is wrong, after the same time.
    pub(crate) async fn check(
        &self,
        password: Password,
        stored: Option<PasswordHash>,
        share: Share,
    ) -> Result<Check, HashError> {
        let cost = self.cost;
        self.spawn_with_permit(share, move || check(&password, stored, cost)).await
    }

    async fn spawn_with_permit<T: Send + 'static>(
        &self,
        share: Share,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, HashError> {
        let permit = self.permits.take(share).await.map_err(|QueueFull| HashError::Busy)?;
        let (sender, result) = oneshot::channel();
        // A thread for each: starting one is nothing beside a hash, and a thread of tokio's would keep the priority.
        let thread = std::thread::Builder::new().name("password".to_owned());
        thread
            .spawn(move || {
                // Owned by the work itself: cancelling the call does not free the processor.
                let _permit = permit;
                lower_priority();
                // A cancelled caller needs no result.
                let _ = sender.send(work());
            })
            .map_err(Error::Thread)?;
        Ok(result.await.map_err(|_| Error::Panicked)??)
    }
}

/// Of this thread (Linux sets the nice value of a thread, other systems that of the process).
fn lower_priority() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(target: "ordermesh", "the priority of a password's thread was not lowered: {error}");
    }
}

fn hash(password: &Password, cost: u32) -> Result<PasswordHash, Error> {
    non_truncating_hash(password.prepared.expose(), cost).map(PasswordHash::from_stored).map_err(Error::Hash)
}

fn check(password: &Password, stored: Option<PasswordHash>, cost: u32) -> Result<Check, Error> {
    let Some(stored) = stored else {
        password.forms().try_for_each(|form| waste(form, cost))?;
        return Ok(Check::Mismatch);
    };
    let stored_cost = stored.cost()?;
    for form in password.forms() {
        if non_truncating_verify(form, stored.as_stored()).map_err(Error::Hash)? {
            let is_current = stored_cost == cost && form == password.prepared.expose();
            // A password that is too long in the current form keeps its hash.
            let is_kept = is_current || !password.fits();
            return Ok(if is_kept { Check::Match } else { Check::Renewed(hash(password, cost)?) });
        }
        // A hash of a lower cost was checked in less time: 2^low + (2^low + … + 2^(cost-1)) = 2^cost.
        (stored_cost..cost).try_for_each(|cost| waste(form, cost))?;
    }
    Ok(Check::Mismatch)
}

/// Takes as long as a check against a hash of this cost.
fn waste(form: &str, cost: u32) -> Result<(), Error> {
    black_box(non_truncating_hash_with_salt(black_box(form), cost, [0; 16])).map_err(Error::Hash)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> Share {
        Share::of_address(std::net::Ipv4Addr::LOCALHOST.into())
    }

    fn password(text: &str) -> Password {
        Password::new(text)
    }

    #[tokio::test]
    async fn a_password_matches_its_hash_and_no_other() {
        let passwords = Passwords::new(4, 8);
        let hash = passwords.hash(password("correct horse"), me()).await.expect("hashed");
        assert_eq!(
            passwords.check(password("correct horse"), Some(hash.clone()), me()).await.expect("checked"),
            Check::Match
        );
        assert_eq!(
            passwords.check(password("Correct horse"), Some(hash), me()).await.expect("checked"),
            Check::Mismatch
        );
        assert_eq!(passwords.check(password("correct horse"), None, me()).await.expect("checked"), Check::Mismatch);
    }

    #[tokio::test]
    async fn a_hash_of_another_cost_is_renewed_by_the_right_password_only() {
        let old = Passwords::new(4, 8).hash(password("correct horse"), me()).await.expect("hashed");
        let passwords = Passwords::new(5, 8);
        assert_eq!(
            passwords.check(password("wrong horse"), Some(old.clone()), me()).await.expect("checked"),
            Check::Mismatch
        );
        let Check::Renewed(new) = passwords.check(password("correct horse"), Some(old), me()).await.expect("checked")
        else {
            panic!("the hash should be renewed");
        };
        assert_eq!(new.cost().expect("a cost"), 5);
        assert_eq!(passwords.check(password("correct horse"), Some(new), me()).await.expect("checked"), Check::Match);
    }

    #[tokio::test]
    async fn seventy_one_bytes_are_hashed_in_full_and_seventy_two_are_rejected() {
        let passwords = Passwords::new(4, 8);
        let longest = "x".repeat(MAX_PASSWORD_BYTES);
        let hash = passwords.hash(password(&longest), me()).await.expect("hashed");
        let almost = format!("{}y", &longest[1..]);
        assert_eq!(passwords.check(password(&almost), Some(hash), me()).await.expect("checked"), Check::Mismatch);
        assert!(matches!(
            passwords.hash(password(&"x".repeat(72)), me()).await,
            Err(HashError::Failed(Error::Hash(_)))
        ));
    }

    #[tokio::test]
    async fn a_password_matches_in_every_equivalent_form() {
        let passwords = Passwords::new(4, 8);
        let hash = passwords.hash(password("Zu\u{308}rich\u{a0}123"), me()).await.expect("hashed");
        for same in ["Z\u{fc}rich 123", "Zu\u{308}rich 123", "Z\u{fc}rich\u{2003}123"] {
            assert_eq!(
                passwords.check(password(same), Some(hash.clone()), me()).await.expect("checked"),
                Check::Match,
                "{same}"
            );
        }
        for other in ["Zurich 123", "Z\u{fc}rich123", "z\u{fc}rich 123"] {
            assert_eq!(
                passwords.check(password(other), Some(hash.clone()), me()).await.expect("checked"),
                Check::Mismatch,
                "{other}"
            );
        }
    }

    #[tokio::test]
    async fn a_hash_of_the_typed_form_is_valid_and_renewed() {
        let (passwords, typed) = (Passwords::new(4, 8), "Zu\u{308}rich 123");
        let old = PasswordHash::from_stored(non_truncating_hash(typed, 4).expect("hashed"));
        assert_eq!(
            passwords.check(password("Zurich 123"), Some(old.clone()), me()).await.expect("checked"),
            Check::Mismatch
        );
        let Check::Renewed(new) = passwords.check(password(typed), Some(old), me()).await.expect("checked") else {
            panic!("the hash should be renewed");
        };
        assert_eq!(passwords.check(password("Z\u{fc}rich 123"), Some(new), me()).await.expect("checked"), Check::Match);
    }

    #[tokio::test]
    async fn a_password_too_long_in_the_current_form_keeps_its_hash() {
        let (passwords, typed) = (Passwords::new(4, 8), "\u{958}".repeat(23));
        assert!(!password(&typed).fits() && password(&typed).may_be_known());
        let old = PasswordHash::from_stored(non_truncating_hash(&typed, 4).expect("hashed"));
        assert_eq!(passwords.check(password(&typed), Some(old), me()).await.expect("checked"), Check::Match);
        assert!(!password(&"x".repeat(72)).may_be_known());
        assert!(password(&"e\u{301}".repeat(30)).fits(), "90 bytes as typed, 60 in the normalized form");
    }

    #[tokio::test]
    async fn a_full_queue_rejects_a_password() {
        assert!(matches!(Passwords::full().hash(password("correct horse"), me()).await, Err(HashError::Busy)));
    }

    #[test]
    fn passwords_and_hashes_are_not_printed() {
        let hash = hash(&password("correct horse"), 4).expect("hashed");
        assert_eq!(
            format!("{:?} {hash:?}", password("correct horse")),
            "Password { prepared: Secret(..), typed: None } PasswordHash(Secret(..))"
        );
    }
}
