//! Access tokens: EdDSA JWTs with `iss sub aud exp nbf role`, all required. A verified token is cached by its hash until
//! it expires. Keys are fetched every 20 seconds, so that a revoked (leaked) key stops verifying; when a fetch fails,
//! they are kept. An unknown key id triggers a fetch at most once in ten seconds. Until the first fetch the source's
//! initial keys are used; fetched keys replace them.
//!
//! The keys come with a short list of sessions that ended before their access tokens expire: these tokens are rejected
//! too, and the streams that they opened are ended.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use kernel::{Clock, SystemClock, Timestamp};
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::identity::caller::{Caller, Role};
use crate::status::{mesh_status, mesh_status_retry};

/// An unknown key id triggers a fetch at most this often: clients choose the key ids.
const REFETCH_INTERVAL: Duration = Duration::from_secs(10);
/// Before the first success, fetches are more frequent.
const FIRST_FETCH_INTERVAL: Duration = Duration::from_millis(250);
/// Calls with an unknown key id wait for the fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
const PREFETCH_MAX_PAUSE: Duration = Duration::from_secs(8);
/// A revoked key, or an ended session, is rejected within a minute, even if one fetch fails.
const KEYS_INTERVAL: Duration = Duration::from_secs(20);
/// The cache is bounded: when it is full, expired tokens are removed, and if there are none, all.
const MAX_CACHED_TOKENS: usize = 10_000;
/// The issuer's clock may be a little ahead of ours.
const LEEWAY_SECONDS: u64 = 5;
/// A longer token is not ours: hashing and decoding it would be work done for an untrusted client.
const MAX_TOKEN_BYTES: usize = 4_096;

/// A public key that verifies access tokens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerifyingKey {
    /// The key id, as in a token's header.
    pub kid: String,
    /// The Ed25519 public key, base64url without padding (`x` of a JWK).
    pub x: String,
}

/// The source of the verifying keys.
pub trait KeySource: Send + Sync + 'static {
    /// All keys that are valid now.
    fn fetch(&self) -> BoxFuture<'_, Result<Vec<VerifyingKey>, Status>>;

    /// All sessions (claim `sid`) that ended before their access tokens expire. Called after [`fetch`](Self::fetch);
    /// when it fails, the known ones are kept.
    fn ended_sessions(&self) -> BoxFuture<'_, Result<Vec<Uuid>, Status>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// Keys that verify until the first fetch succeeds: read from a file, so that a service that starts while the source
    /// is unavailable serves callers that have a token.
    fn initial(&self) -> Vec<VerifyingKey> {
        Vec::new()
    }
}

#[derive(Deserialize)]
struct Claims {
    sub: Uuid,
    exp: i64,
    role: String,
    sid: Option<Uuid>,
}

type Keys = HashMap<String, DecodingKey>;

/// What triggers a fetch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trigger {
    /// For a call: a recent fetch suffices.
    Call,
    /// Every [`KEYS_INTERVAL`], whatever calls have triggered in between.
    Interval,
}

/// Verifies access tokens.
pub(crate) struct Tokens {
    source: Arc<dyn KeySource>,
    validation: Validation,
    keys: RwLock<Arc<Keys>>,
    /// The keys were fetched. Else they are the initial ones, and a key that is not among them may be valid.
    is_fetched: AtomicBool,
    /// The time of the last fetch; locked during a fetch, so that concurrent calls share it.
    last_fetch: Arc<tokio::sync::Mutex<Option<Instant>>>,
    verified: Mutex<HashMap<[u8; 32], (Caller, Timestamp)>>,
    ended: watch::Sender<HashSet<Uuid>>,
}

impl Tokens {
    pub(crate) fn new(source: Arc<dyn KeySource>, issuer: String, audience: String) -> Self {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_required_spec_claims(&["iss", "sub", "aud", "exp", "nbf"]);
        validation.set_issuer(&[issuer]);
        validation.set_audience(&[audience]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY_SECONDS;
        let keys = RwLock::new(Arc::new(readable(source.initial())));
        let is_fetched = AtomicBool::new(false);
        Self {
            source,
            validation,
            keys,
            is_fetched,
            last_fetch: Arc::default(),
            verified: Mutex::default(),
            ended: watch::Sender::default(),
        }
    }

    pub(crate) async fn verify(self: &Arc<Self>, token: &str) -> Result<Caller, Status> {
        let caller = self.signed(token).await?;
        match &caller {
            Caller::User { session_id: Some(session), .. } if self.ended.borrow().contains(session) => {
                Err(session_ended())
            }
            Caller::User { .. } | Caller::Service { .. } | Caller::Anonymous => Ok(caller),
        }
    }

    /// Waits until a session has ended; returns the status for its streams.
    pub(crate) async fn ended(self: Arc<Self>, session: Uuid) -> Status {
        // Cannot fail: the sender is a field of `self`.
        let _ = self.ended.subscribe().wait_for(|ended| ended.contains(&session)).await;
        session_ended()
    }

    /// The caller that a token names, by its signature.
    async fn signed(self: &Arc<Self>, token: &str) -> Result<Caller, Status> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(malformed());
        }
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(caller) = self.cached(&hash) {
            return Ok(caller);
        }
        let header = decode_header(token).map_err(|_| malformed())?;
        // No extension is supported: a token with a critical one is rejected (RFC 7515, section 4.1.11).
        if header.alg != Algorithm::EdDSA || header.crit.is_some() {
            return Err(invalid());
        }
        let kid = header.kid.as_deref().ok_or_else(invalid)?;
        let key = self.key(kid).await?;
        let claims = decode::<Claims>(token, &key, &self.validation).map_err(|error| rejection(error.kind()))?.claims;
        let role = match claims.role.as_str() {
            "customer" => Role::Customer,
            "operator" => Role::Operator,
            _ => return Err(invalid()),
        };
        let token_expires = Timestamp::from_micros(claims.exp.saturating_mul(1_000_000));
        let caller = Caller::User { user_id: claims.sub, role, token_expires, session_id: claims.sid };
        self.cache(kid, hash, caller.clone(), token_expires);
        Ok(caller)
    }

    /// Fetches keys until the first success, so that the first call need not wait for them, and then every
    /// [`KEYS_INTERVAL`].
    pub(crate) async fn follow(self: &Arc<Self>) {
        let mut pause = FIRST_FETCH_INTERVAL;
        loop {
            self.refetch(Trigger::Interval).await;
            if self.is_fetched() {
                tokio::time::sleep(KEYS_INTERVAL).await;
                continue;
            }
            // Logged only after a while: services start in any order.
            if pause == PREFETCH_MAX_PAUSE {
                let initial = self.keys().len();
                tracing::warn!(target: "ordermesh", initial, "signing keys have not been fetched yet: only the initial keys verify access tokens");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PREFETCH_MAX_PAUSE);
        }
    }

    fn cached(&self, hash: &[u8; 32]) -> Option<Caller> {
        let mut verified = self.verified.lock();
        let (caller, expires) = verified.get(hash)?;
        if SystemClock.now() < *expires {
            return Some(caller.clone());
        }
        verified.remove(hash);
        None
    }

    fn cache(&self, kid: &str, hash: [u8; 32], caller: Caller, expires: Timestamp) {
        let mut verified = self.verified.lock();
        // The key was revoked after the lookup: its cached tokens were removed before this insert.
        if !self.keys().contains_key(kid) {
            return;
        }
        if verified.len() >= MAX_CACHED_TOKENS {
            let now = SystemClock.now();
            verified.retain(|_, (_, expires)| now < *expires);
            if verified.len() >= MAX_CACHED_TOKENS {
                verified.clear();
            }
        }
        verified.insert(hash, (caller, expires));
    }

    async fn key(self: &Arc<Self>, kid: &str) -> Result<DecodingKey, Status> {
        if let Some(key) = self.keys().get(kid) {
            return Ok(key.clone());
        }
        self.refetch(Trigger::Call).await;
        let key = self.keys().get(kid).cloned();
        if key.is_none() && !self.is_fetched() {
            return Err(mesh_status_retry(
                Code::Unavailable,
                "KEYS_NOT_AVAILABLE",
                "access tokens cannot be verified yet",
                Some(Duration::from_secs(1)),
            ));
        }
        key.ok_or_else(invalid)
    }

    fn is_fetched(&self) -> bool {
        self.is_fetched.load(Ordering::Acquire)
    }

    fn keys(&self) -> Arc<Keys> {
        self.keys.read().clone()
    }

    /// Fetches in a task of its own: a call that is cancelled, or has a short deadline, neither cuts the fetch off nor
    /// lends it its deadline. Concurrent calls wait for the same fetch.
    async fn refetch(self: &Arc<Self>, trigger: Trigger) {
        let waiting_since = Instant::now();
        let mut last_fetch = self.last_fetch.clone().lock_owned().await;
        let mut wait = Duration::ZERO;
        if trigger == Trigger::Call
            && let Some(last) = *last_fetch
        {
            let is_fetched = self.is_fetched();
            wait = if is_fetched { REFETCH_INTERVAL } else { FIRST_FETCH_INTERVAL }.saturating_sub(last.elapsed());
            // Another call has fetched while this one waited for the lock; or the last fetch is too recent.
            if last > waiting_since || (is_fetched && !wait.is_zero()) {
                return;
            }
        }
        let this = self.clone();
        let fetching = tokio::spawn(async move {
            // Before the first fetch, a short wait is better than a rejection. Services start in any order.
            tokio::time::sleep(wait).await;
            *last_fetch = Some(Instant::now());
            this.fetch().await;
        });
        // Fails only when the runtime shuts down.
        let _ = fetching.await;
    }

    /// When it fails, the current keys and sessions are kept.
    async fn fetch(&self) {
        self.fetch_keys().await;
        match with_timeout(self.source.ended_sessions()).await {
            Ok(ended) => {
                let ended: HashSet<_> = ended.into_iter().collect();
                self.ended.send_if_modified(|known| {
                    let is_other = *known != ended;
                    *known = ended;
                    is_other
                });
            }
            Err(status) if self.is_fetched() => {
                tracing::warn!(target: "ordermesh", "ended sessions could not be fetched: {}", status.message());
            }
            Err(_) => {}
        }
    }

    async fn fetch_keys(&self) {
        let fetched = match with_timeout(self.source.fetch()).await {
            Ok(fetched) => fetched,
            Err(status) => {
                // Before the first fetch, `follow` logs it.
                if self.is_fetched() {
                    tracing::warn!(target: "ordermesh", "signing keys could not be fetched again: {}", status.message());
                }
                return;
            }
        };
        let keys = readable(fetched);
        if keys.is_empty() {
            return;
        }
        let before = std::mem::replace(&mut *self.keys.write(), Arc::new(keys));
        let is_first = !self.is_fetched.swap(true, Ordering::AcqRel);
        if is_first || before.keys().any(|kid| !self.keys().contains_key(kid)) {
            // The cache does not record which key verified a token.
            self.verified.lock().clear();
        }
    }
}

async fn with_timeout<T>(fetch: BoxFuture<'_, Result<T, Status>>) -> Result<T, Status> {
    let in_time = tokio::time::timeout(FETCH_TIMEOUT, fetch).await;
    in_time.unwrap_or_else(|_elapsed| Err(Status::deadline_exceeded("the fetch timed out")))
}

fn readable(keys: Vec<VerifyingKey>) -> Keys {
    let readable = keys.into_iter().filter_map(|key| match DecodingKey::from_ed_components(&key.x) {
        Ok(decoding) => Some((key.kid, decoding)),
        Err(error) => {
            tracing::warn!(target: "ordermesh", kid = key.kid, %error, "a signing key cannot be read");
            None
        }
    });
    readable.collect()
}

fn malformed() -> Status {
    mesh_status(Code::Unauthenticated, "TOKEN_MALFORMED", "the access token is not a JWT of this platform")
}

fn invalid() -> Status {
    mesh_status(Code::Unauthenticated, "TOKEN_INVALID", "the access token is not valid here")
}

fn session_ended() -> Status {
    mesh_status(Code::Unauthenticated, "SESSION_ENDED", "the session has ended: log in again")
}

fn rejection(kind: &ErrorKind) -> Status {
    if matches!(kind, ErrorKind::ExpiredSignature) {
        return mesh_status(
            Code::Unauthenticated,
            "TOKEN_EXPIRED",
            "the access token has expired: refresh the session; if it is new, compare this machine's clock with that of the User Service",
        );
    }
    if matches!(kind, ErrorKind::ImmatureSignature) {
        return mesh_status(
            Code::Unauthenticated,
            "TOKEN_INVALID",
            "the access token is not valid yet: compare this machine's clock with that of the User Service",
        );
    }
    if matches!(kind, ErrorKind::InvalidToken | ErrorKind::Base64(_) | ErrorKind::Utf8(_)) {
        return malformed();
    }
    invalid()
}

#[cfg(test)]
mod tests;
