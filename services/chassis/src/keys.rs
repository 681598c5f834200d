//! The public keys that verify access tokens: fetched from the User Service, and until they have been fetched once,
//! read from a file with a JWK set (RFC 7517) as ListSigningKeys returns it in JSON. So a service that starts while the
//! User Service is down serves callers that already have a token. Fetched with them: the sessions that have ended
//! before their access tokens have expired.
//!
//! The file is mounted (`--token-keys`) and read-only, or it is `token-keys.json` in the data folder, where each
//! instance stores the keys that it has fetched.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use contracts::user::v1::user_service_client::UserServiceClient;
use contracts::user::v1::{ListEndedSessionsRequest, ListSigningKeysRequest, SigningKey};
use futures_util::future::BoxFuture;
use mesh::{Channel, KeySource, VerifyingKey};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// `iss` of every access token.
pub const ISSUER: &str = "ordermesh-user";
/// `aud` of every access token.
pub const AUDIENCE: &str = "ordermesh";
/// The file's name in the data folder.
const FILE_NAME: &str = "token-keys.json";
/// Ended sessions per page.
const PAGE_SIZE: i32 = 10_000;

/// A JWK set; keys other than Ed25519 are skipped.
#[derive(Serialize, Deserialize)]
struct KeySet {
    keys: Vec<Jwk>,
}

#[derive(Serialize, Deserialize)]
struct Jwk {
    kid: Option<String>,
    kty: String,
    crv: Option<String>,
    x: Option<String>,
}

impl KeySet {
    fn of(keys: &[VerifyingKey]) -> Self {
        let jwk = |key: &VerifyingKey| Jwk {
            kid: Some(key.kid.clone()),
            kty: "OKP".to_owned(),
            crv: Some("Ed25519".to_owned()),
            x: Some(key.x.clone()),
        };
        Self { keys: keys.iter().map(jwk).collect() }
    }

    fn verifying(self) -> Vec<VerifyingKey> {
        let key = |jwk: Jwk| match (jwk.kid, jwk.crv.as_deref(), jwk.x) {
            (Some(kid), Some("Ed25519"), Some(x)) if jwk.kty == "OKP" => Some(VerifyingKey { kid, x }),
            (_, _, _) => None,
        };
        self.keys.into_iter().filter_map(key).collect()
    }
}

/// Keys fetched by `ListSigningKeys`.
#[derive(Clone, Debug)]
pub struct RemoteKeys {
    user: Channel,
    initial: Vec<VerifyingKey>,
    /// Where fetched keys are stored.
    cache: Option<PathBuf>,
}

impl RemoteKeys {
    /// Fetches over a channel to the User Service; starts with the keys of a mounted file, or else with those of the
    /// data folder.
    ///
    /// # Errors
    /// A mounted file exists but is not a JWK set with an Ed25519 key. A missing file is only logged.
    pub(crate) fn new(user: Channel, mounted: Option<&Path>, data_dir: &Path) -> Result<Self, io::Error> {
        let Some(path) = mounted else {
            let cache = data_dir.is_dir().then(|| data_dir.join(FILE_NAME));
            // Written by another instance; if it is missing or unreadable, the keys are fetched as usual.
            let initial = cache.as_deref().and_then(|path| read(path).ok()).unwrap_or_default();
            return Ok(Self { user, initial, cache });
        };
        let initial = match read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tracing::warn!(target: "ordermesh", path = %path.display(), "the file of token keys does not exist: no access token can be verified until they are fetched from the User Service");
                Vec::new()
            }
            read => read?,
        };
        Ok(Self { user, initial, cache: None })
    }

    fn keep(&self, keys: &[VerifyingKey]) {
        let Some(path) = &self.cache else { return };
        if !keys.is_empty()
            && let Err(error) = write(path, keys)
        {
            tracing::warn!(target: "ordermesh", path = %path.display(), %error, "the signing keys cannot be stored for the next start");
        }
    }
}

impl KeySource for RemoteKeys {
    fn fetch(&self) -> BoxFuture<'_, Result<Vec<VerifyingKey>, tonic::Status>> {
        Box::pin(async move {
            let request = mesh::untraced(ListSigningKeysRequest {});
            let response = UserServiceClient::new(self.user.clone()).list_signing_keys(request).await?;
            let keys = response.into_inner().keys.into_iter();
            let keys: Vec<_> = keys.map(|SigningKey { kid, x, .. }| VerifyingKey { kid, x }).collect();
            self.keep(&keys);
            Ok(keys)
        })
    }

    fn ended_sessions(&self) -> BoxFuture<'_, Result<Vec<Uuid>, tonic::Status>> {
        Box::pin(async move {
            let (mut user, mut ended) = (UserServiceClient::new(self.user.clone()), Vec::new());
            let mut page_token = String::new();
            loop {
                let request = ListEndedSessionsRequest { page_size: PAGE_SIZE, page_token };
                let page = match user.list_ended_sessions(mesh::untraced(request)).await {
                    Ok(page) => page.into_inner(),
                    // An earlier release without this method, during a rolling update.
                    Err(status) if status.code() == tonic::Code::Unimplemented => return Ok(ended),
                    Err(status) => return Err(status),
                };
                for id in page.session_ids {
                    let unreadable = |_| tonic::Status::internal("a session's id is not a UUID");
                    ended.push(id.parse().map_err(unreadable)?);
                }
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    return Ok(ended);
                }
            }
        })
    }

    fn initial(&self) -> Vec<VerifyingKey> {
        self.initial.clone()
    }
}

fn read(path: &Path) -> Result<Vec<VerifyingKey>, io::Error> {
    let set: KeySet = serde_json::from_slice(&fs::read(path)?)?;
    let keys = set.verifying();
    let none = || io::Error::new(io::ErrorKind::InvalidData, "it has no Ed25519 key with kid and x");
    if keys.is_empty() { Err(none()) } else { Ok(keys) }
}

/// Replaces the file atomically, unless it has the same content: other instances write it too.
fn write(path: &Path, keys: &[VerifyingKey]) -> Result<(), io::Error> {
    if read(path).is_ok_and(|kept| kept == keys) {
        return Ok(());
    }
    let unfinished = path.with_extension(format!("json.{:016x}", rand::random::<u64>()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    let written = file.write_all(&serde_json::to_vec_pretty(&KeySet::of(keys))?).and_then(|()| file.sync_all());
    let replaced = written.and_then(|()| fs::rename(&unfinished, path));
    if replaced.is_err() {
        // Nothing more can be done if the folder is not writable.
        let _ = fs::remove_file(&unfinished);
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kid: &str) -> VerifyingKey {
        VerifyingKey { kid: kid.to_owned(), x: format!("x-of-{kid}") }
    }

    fn user() -> Channel {
        let nowhere = vec!["127.0.0.1:1".to_owned()];
        mesh::client(mesh::ClientConfig::new("user", nowhere, contracts::POLICIES))
    }

    #[tokio::test]
    async fn an_instance_starts_with_the_keys_that_another_has_fetched() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = RemoteKeys::new(user(), None, folder.path()).expect("made");
        assert_eq!(first.initial(), []);
        first.keep(&[key("old"), key("new")]);
        assert_eq!(RemoteKeys::new(user(), None, folder.path()).expect("made").initial(), [key("old"), key("new")]);
        first.keep(&[key("new")]);
        let next = RemoteKeys::new(user(), None, folder.path()).expect("made");
        assert_eq!(next.initial(), [key("new")], "a removed key is not kept");
        first.keep(&[]);
        assert_eq!(RemoteKeys::new(user(), None, folder.path()).expect("made").initial(), [key("new")]);
        let files = fs::read_dir(folder.path()).expect("a folder").count();
        assert_eq!(files, 1, "no partially written file is left");
        fs::write(folder.path().join(FILE_NAME), "half a f").expect("written");
        assert_eq!(RemoteKeys::new(user(), None, folder.path()).expect("made").initial(), []);
    }

    #[tokio::test]
    async fn a_mounted_file_is_read_as_a_jwk_set_and_never_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mounted.json");
        let key_set = r#"{"keys": [
            {"kid": "a", "kty": "OKP", "crv": "Ed25519", "x": "x-of-a", "alg": "EdDSA"},
            {"kid": "r", "kty": "RSA", "n": "…", "e": "AQAB"}
        ]}"#;
        fs::write(&path, key_set).expect("written");
        let keys = RemoteKeys::new(user(), Some(&path), folder.path()).expect("made");
        assert_eq!(keys.initial(), [key("a")]);
        keys.keep(&[key("b")]);
        assert_eq!(fs::read_to_string(&path).expect("read"), key_set);
        assert!(!folder.path().join(FILE_NAME).exists());
    }

    #[tokio::test]
    async fn an_invalid_mounted_file_is_rejected_and_a_missing_one_is_accepted() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mounted.json");
        assert_eq!(RemoteKeys::new(user(), Some(&path), folder.path()).expect("made").initial(), []);
        for malformed in
            ["", "{}", r#"{"keys": []}"#, r#"{"keys": [{"kty": "OKP", "crv": "X25519", "kid": "a", "x": "b"}]}"#]
        {
            fs::write(&path, malformed).expect("written");
            let error = RemoteKeys::new(user(), Some(&path), folder.path()).expect_err("malformed");
            assert_ne!(error.kind(), io::ErrorKind::NotFound, "{malformed}");
        }
    }
}
