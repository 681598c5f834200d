//! The public keys that verify access tokens: asked of the User Service, and until it has answered those of a file, a JWK
//! set (RFC 7517) such as ListSigningKeys answers in JSON. So a service that starts while nobody can log in serves everybody
//! who has. With them come the sessions that have ended although their access tokens have not.
//!
//! The file is mounted (`--token-keys`), and only read; or it is `token-keys.json` in the data folder, and each instance
//! keeps there what it has fetched.

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
/// In the data folder.
const FILE_NAME: &str = "token-keys.json";
/// Of ended sessions, in a page.
const PAGE_SIZE: i32 = 10_000;

/// A JWK set; what is not an Ed25519 key is left out.
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

/// Keys by `ListSigningKeys`.
#[derive(Clone, Debug)]
pub struct RemoteKeys {
    user: Channel,
    initial: Vec<VerifyingKey>,
    /// Where what was fetched is kept.
    cache: Option<PathBuf>,
}

impl RemoteKeys {
    /// Over a channel to the User Service, with the keys of a mounted file, or else of the data folder.
    ///
    /// # Errors
    /// A mounted file that is there and is no JWK set with an Ed25519 key. One that is not there is only said in the log.
    pub(crate) fn new(user: Channel, mounted: Option<&Path>, data_dir: &Path) -> Result<Self, io::Error> {
        let Some(path) = mounted else {
            let cache = data_dir.is_dir().then(|| data_dir.join(FILE_NAME));
            // Made by another instance; without it, or when it cannot be read, the keys are fetched as ever.
            let initial = cache.as_deref().and_then(|path| read(path).ok()).unwrap_or_default();
            return Ok(Self { user, initial, cache });
        };
        let initial = match read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tracing::warn!(target: "ordermesh", path = %path.display(), "there is no file of token keys: until the User Service answers, no access token can be verified");
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
            tracing::warn!(target: "ordermesh", path = %path.display(), %error, "the signing keys cannot be kept for the next start");
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
                    // Of a release that has no such list, while this one is rolled out.
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
    let none = || io::Error::new(io::ErrorKind::InvalidData, "no Ed25519 key with kid and x is in it");
    if keys.is_empty() { Err(none()) } else { Ok(keys) }
}

/// Replaces the file as a whole, unless it says the same: other instances write it too.
fn write(path: &Path, keys: &[VerifyingKey]) -> Result<(), io::Error> {
    if read(path).is_ok_and(|kept| kept == keys) {
        return Ok(());
    }
    let unfinished = path.with_extension(format!("json.{:016x}", rand::random::<u64>()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    let written = file.write_all(&serde_json::to_vec_pretty(&KeySet::of(keys))?).and_then(|()| file.sync_all());
    let replaced = written.and_then(|()| fs::rename(&unfinished, path));
    if replaced.is_err() {
        // Nothing more can be done about a folder that cannot be written.
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
    async fn what_one_instance_has_fetched_the_next_begins_with() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = RemoteKeys::new(user(), None, folder.path()).expect("made");
        assert_eq!(first.initial(), []);
        first.keep(&[key("old"), key("new")]);
        assert_eq!(RemoteKeys::new(user(), None, folder.path()).expect("made").initial(), [key("old"), key("new")]);
        first.keep(&[key("new")]);
        let next = RemoteKeys::new(user(), None, folder.path()).expect("made");
        assert_eq!(next.initial(), [key("new")], "one that was taken away is not kept");
        first.keep(&[]);
        assert_eq!(RemoteKeys::new(user(), None, folder.path()).expect("made").initial(), [key("new")]);
        let files = fs::read_dir(folder.path()).expect("a folder").count();
        assert_eq!(files, 1, "nothing half written is left");
        fs::write(folder.path().join(FILE_NAME), "half a f").expect("written");
        assert_eq!(RemoteKeys::new(user(), None, folder.path()).expect("made").initial(), []);
    }

    #[tokio::test]
    async fn a_mounted_file_is_what_list_signing_keys_answers_and_is_never_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mounted.json");
        let answer = r#"{"keys": [
            {"kid": "a", "kty": "OKP", "crv": "Ed25519", "x": "x-of-a", "alg": "EdDSA"},
            {"kid": "r", "kty": "RSA", "n": "…", "e": "AQAB"}
        ]}"#;
        fs::write(&path, answer).expect("written");
        let keys = RemoteKeys::new(user(), Some(&path), folder.path()).expect("made");
        assert_eq!(keys.initial(), [key("a")]);
        keys.keep(&[key("b")]);
        assert_eq!(fs::read_to_string(&path).expect("read"), answer);
        assert!(!folder.path().join(FILE_NAME).exists());
    }

    #[tokio::test]
    async fn a_mounted_file_that_is_none_is_refused_and_one_that_is_missing_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mounted.json");
        assert_eq!(RemoteKeys::new(user(), Some(&path), folder.path()).expect("made").initial(), []);
        for wrong in
            ["", "{}", r#"{"keys": []}"#, r#"{"keys": [{"kty": "OKP", "crv": "X25519", "kid": "a", "x": "b"}]}"#]
        {
            fs::write(&path, wrong).expect("written");
            let refused = RemoteKeys::new(user(), Some(&path), folder.path()).expect_err("refused");
            assert_ne!(refused.kind(), io::ErrorKind::NotFound, "{wrong}");
        }
    }
}
