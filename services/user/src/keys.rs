//! The keys that sign access tokens: files in a directory that all instances share (a mounted Secret; `data/keys` on one
//! machine), PKCS#8 PEM, named after the time they were made: `<unix seconds>.pem`.
//!
//! All of them verify. The newest that is older than ten minutes signs, else the oldest: a new key is known everywhere
//! before it is used. To rotate, add a file; after the longest token's life take the old one away. Other names without
//! `.pem` are not looked at.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, KeypairBytes};
use futures_util::future::BoxFuture;
use jsonwebtoken::EncodingKey;
use kernel::{Clock, Timestamp};
use mesh::{KeySource, VerifyingKey};
use sha2::{Digest, Sha256};
use storage::ownership::{self, Exposed};
use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// How old a key is before it signs.
const MATURE_AFTER: Duration = Duration::from_secs(600);
/// How often the directory is read again.
const RELOAD_INTERVAL: Duration = Duration::from_secs(30);
/// More than anybody rotates; each one is a public key in every verifier.
const MAX_KEYS: usize = 100;

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeysError {
    /// The directory or a file cannot be read or written.
    #[error("the signing keys' {path} cannot be used")]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody else may read or change it.
    #[error("the signing keys cannot be used")]
    Exposed(#[from] Exposed),
    /// Its name does not say when it was made.
    #[error("the signing key {path} must be named after the time it was made, as in 1763856000.pem")]
    Name {
        /// Which one.
        path: PathBuf,
    },
    /// It is no key.
    #[error("the signing key {path} is no Ed25519 key in PKCS#8 PEM, as `openssl genpkey -algorithm ed25519` makes it")]
    Form {
        /// Which one.
        path: PathBuf,
    },
    /// There is none.
    #[error("there is no signing key in {directory}, and making one is not allowed (--generate-keys)")]
    None {
        /// Where.
        directory: PathBuf,
    },
    /// There are too many.
    #[error("there are more than {MAX_KEYS} signing keys in {directory}")]
    TooMany {
        /// Where.
        directory: PathBuf,
    },
}

/// A key pair.
pub(crate) struct SigningKey {
    /// RFC 7638 thumbprint.
    pub(crate) kid: String,
    /// The public key, base64url.
    pub(crate) x: String,
    made: Timestamp,
    pair: ed25519_dalek::SigningKey,
    encoding: EncodingKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).field("made", &self.made).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// A new key.
    pub(crate) fn generate() -> Self {
        let pair = ed25519_dalek::SigningKey::from_bytes(&rand::random());
        Self::of(pair, Timestamp::default())
    }

    fn of(pair: ed25519_dalek::SigningKey, made: Timestamp) -> Self {
        let x = BASE64_URL_SAFE_NO_PAD.encode(pair.verifying_key().as_bytes());
        // RFC 7638: the required members, in lexical order, without blanks.
        let thumbprint = Sha256::digest(format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#));
        let kid = BASE64_URL_SAFE_NO_PAD.encode(thumbprint);
        let encoding = EncodingKey::from_ed_der(&der(&pair));
        Self { kid, x, made, pair, encoding }
    }

    fn from_pem(pem: &str, made: Timestamp) -> Option<Self> {
        ed25519_dalek::SigningKey::from_pkcs8_pem(pem).ok().map(|pair| Self::of(pair, made))
    }

    pub(crate) fn encoding(&self) -> &EncodingKey {
        &self.encoding
    }

    fn to_pem(&self) -> Option<String> {
        keypair(&self.pair).to_pkcs8_pem(LineEnding::LF).ok().map(|pem| pem.as_str().to_owned())
    }
}

/// Without the public key: the form that every OpenSSL reads.
fn keypair(pair: &ed25519_dalek::SigningKey) -> KeypairBytes {
    KeypairBytes { secret_key: pair.to_bytes(), public_key: None }
}

fn der(pair: &ed25519_dalek::SigningKey) -> Vec<u8> {
    // 32 bytes always have a DER form; an empty one would fail to sign, and say so.
    keypair(pair).to_pkcs8_der().map(|der| der.as_bytes().to_vec()).unwrap_or_default()
}

/// The keys of a directory.
pub(crate) struct KeyStore {
    directory: PathBuf,
    clock: Arc<dyn Clock>,
    /// Oldest first; never empty.
    keys: RwLock<Arc<Vec<Arc<SigningKey>>>>,
}

impl fmt::Debug for KeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyStore").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl KeyStore {
    /// Reads the directory; makes the first key when there is none and `generate` allows it. Blocks.
    pub(crate) fn open(directory: PathBuf, generate: bool, clock: Arc<dyn Clock>) -> Result<Self, KeysError> {
        let keys = match read(&directory) {
            Err(KeysError::None { .. }) if generate => {
                make_first(&directory, clock.now())?;
                read(&directory)?
            }
            read => read?,
        };
        Ok(Self { directory, clock, keys: RwLock::new(Arc::new(keys)) })
    }

    /// Reads the directory again; what cannot be read changes nothing. Blocks.
    pub(crate) fn reload(&self) -> Result<(), KeysError> {
        let keys = Arc::new(read(&self.directory)?);
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }

    /// All of them, oldest first.
    pub(crate) fn all(&self) -> Arc<Vec<Arc<SigningKey>>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The one that signs now.
    pub(crate) fn signer(&self) -> Result<Arc<SigningKey>, Error> {
        let keys = self.all();
        let now = self.clock.now();
        let mature = keys.iter().rev().find(|key| key.made.plus(MATURE_AFTER) <= now);
        mature.or(keys.first()).cloned().ok_or(Error::NoSigningKey)
    }

    /// Reads the directory every now and then, until `stop`.
    pub(crate) async fn keep_reloading(self: Arc<Self>, stop: CancellationToken) {
        while tokio::time::timeout(RELOAD_INTERVAL, stop.cancelled()).await.is_err() {
            reload_off_thread(self.clone()).await;
        }
    }
}

async fn reload_off_thread(keys: Arc<KeyStore>) {
    let reload = tokio::task::spawn_blocking(move || keys.reload());
    if let Ok(Err(error)) = reload.await {
        tracing::warn!(target: "ordermesh", "signing keys are kept as they were: {error}");
    }
}

/// This service's own keys, for its own door.
#[derive(Debug)]
pub(crate) struct OwnKeys(pub(crate) Arc<KeyStore>);

impl KeySource for OwnKeys {
    fn fetch(&self) -> BoxFuture<'_, Result<Vec<VerifyingKey>, tonic::Status>> {
        Box::pin(async {
            // Somebody shows a key that is not known here: it may be a new one.
            reload_off_thread(self.0.clone()).await;
            Ok(self.0.all().iter().map(|key| VerifyingKey { kid: key.kid.clone(), x: key.x.clone() }).collect())
        })
    }
}

fn read(directory: &Path) -> Result<Vec<Arc<SigningKey>>, KeysError> {
    let none = || KeysError::None { directory: directory.to_owned() };
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| KeysError::Io { path, source }
    };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(none()),
        entries => entries.map_err(unreadable(directory))?,
    };
    ownership::check_unwritable(directory)?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable(directory))?.path();
        if path.extension().is_some_and(|extension| extension == "pem") {
            paths.push(path);
        }
    }
    if paths.len() > MAX_KEYS {
        return Err(KeysError::TooMany { directory: directory.to_owned() });
    }
    let mut keys = Vec::with_capacity(paths.len());
    for path in paths {
        let made = made(&path).ok_or_else(|| KeysError::Name { path: path.clone() })?;
        ownership::check_secret(&path)?;
        let pem = fs::read_to_string(&path).map_err(unreadable(&path))?;
        let key = SigningKey::from_pem(&pem, made).ok_or_else(|| KeysError::Form { path: path.clone() })?;
        keys.push(Arc::new(key));
    }
    if keys.is_empty() {
        return Err(none());
    }
    // By the thumbprint too, so that all instances agree about two of one second.
    keys.sort_by(|a, b| (a.made, &a.kid).cmp(&(b.made, &b.kid)));
    Ok(keys)
}

/// When a key was made, from its file's name: `1763856000.pem`, `1763856000-anything.pem`. Not from its mtime, which
/// a copy or a mount changes.
fn made(path: &Path) -> Option<Timestamp> {
    let stem = path.file_stem()?.to_str()?;
    let seconds: u64 = stem.split('-').next()?.parse().ok()?;
    Some(Timestamp::default().plus(Duration::from_secs(seconds)))
}

/// Makes the first key, unless another instance does so at this moment: both go on with the same one.
fn make_first(directory: &Path, now: Timestamp) -> Result<(), KeysError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| KeysError::Io { path, source }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(at(directory))?;
    let lock_path = directory.join(".lock");
    let mut options = OpenOptions::new();
    let lock = options.create(true).truncate(false).write(true).mode(0o600).open(&lock_path).map_err(at(&lock_path))?;
    // Freed when the file is closed, also by kill -9.
    lock.lock().map_err(at(&lock_path))?;
    if !matches!(read(directory), Err(KeysError::None { .. })) {
        return Ok(());
    }
    let path = directory.join(format!("{}.pem", now.since(Timestamp::default()).as_secs()));
    let pem = SigningKey::generate().to_pem().ok_or_else(|| KeysError::Form { path: path.clone() })?;
    let unfinished = directory.join(".new");
    write(&unfinished, &pem).map_err(at(&unfinished))?;
    fs::rename(&unfinished, &path).map_err(at(&path))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(at(directory))
}

/// Writes a new file that nobody else may read. One that a dead instance left half written is replaced.
fn write(path: &Path, text: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests;
