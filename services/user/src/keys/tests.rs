use std::os::unix::fs::PermissionsExt;

use kernel::ManualClock;
use tempfile::TempDir;

use super::*;

const START_SECONDS: u64 = 1_763_856_000;

fn at(seconds: u64) -> Timestamp {
    Timestamp::default().plus(Duration::from_secs(seconds))
}

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let keys = folder.path().join("keys");
    (folder, keys)
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(at(START_SECONDS)))
}

fn add(directory: &Path, name: &str) -> String {
    let key = SigningKey::generate();
    fs::create_dir_all(directory).expect("a folder");
    testkit::write_secret(directory.join(name), &key.to_pem().expect("a PEM"));
    key.kid
}

#[test]
fn the_first_start_generates_a_private_key_and_the_next_start_reuses_it() {
    let (_folder, directory) = folder();
    let store = KeyStore::open(directory.clone(), true, clock()).expect("generated");
    let again = KeyStore::open(directory.clone(), true, clock()).expect("opened");
    assert_eq!(store.signer().expect("a key").kid, again.signer().expect("a key").kid);
    assert_eq!(again.all().len(), 1);
    let path = directory.join(format!("{START_SECONDS}.pem"));
    let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&directory)), (0o600, 0o700));
}

#[test]
fn no_key_is_generated_without_permission() {
    let (_folder, directory) = folder();
    assert!(matches!(KeyStore::open(directory.clone(), false, clock()), Err(KeysError::None { .. })));
    assert!(!directory.exists());
}

#[test]
fn eight_concurrent_starts_agree_on_one_key() {
    let (_folder, directory) = folder();
    let starts: Vec<_> = (0..8)
        .map(|number| {
            let directory = directory.clone();
            let clock = Arc::new(ManualClock::at(at(START_SECONDS + number)));
            std::thread::spawn(move || KeyStore::open(directory, true, clock).expect("it opens"))
        })
        .collect();
    let mut kids: Vec<String> =
        starts.into_iter().map(|start| start.join().expect("no panic").signer().expect("a key").kid.clone()).collect();
    kids.dedup();
    assert_eq!(kids.len(), 1);
    assert_eq!(KeyStore::open(directory, false, clock()).expect("it opens").all().len(), 1);
}

#[test]
fn a_new_key_signs_when_its_name_is_ten_minutes_old() {
    let (_folder, directory) = folder();
    let clock = clock();
    let first = add(&directory, &format!("{}.pem", START_SECONDS - 100));
    let store = KeyStore::open(directory.clone(), false, clock.clone()).expect("it opens");
    assert_eq!(store.signer().expect("a key").kid, first, "the oldest, if none is old enough");
    let second = add(&directory, &format!("{START_SECONDS}-b.pem"));
    store.reload().expect("read again");
    assert_eq!(store.all().iter().map(|key| key.kid.as_str()).collect::<Vec<_>>(), [&first, &second]);
    clock.advance(Duration::from_secs(599));
    assert_eq!(store.signer().expect("a key").kid, first);
    clock.advance(Duration::from_secs(1));
    assert_eq!(store.signer().expect("a key").kid, second);
}

#[test]
fn an_unreadable_file_is_named_and_leaves_the_keys_unchanged() {
    let (_folder, directory) = folder();
    let first = add(&directory, "1.pem");
    let store = KeyStore::open(directory.clone(), false, clock()).expect("it opens");
    add(&directory, "mine.pem");
    assert!(matches!(store.reload(), Err(KeysError::Name { path }) if path.ends_with("mine.pem")));
    fs::remove_file(directory.join("mine.pem")).expect("removed");
    testkit::write_secret(directory.join("2.pem"), "no key");
    assert!(matches!(store.reload(), Err(KeysError::Malformed { path }) if path.ends_with("2.pem")));
    fs::remove_file(directory.join("2.pem")).expect("removed");
    fs::write(directory.join("README"), "not looked at").expect("written");
    store.reload().expect("valid again");
    fs::remove_file(directory.join("1.pem")).expect("removed");
    assert!(matches!(store.reload(), Err(KeysError::None { .. })));
    assert_eq!(store.signer().expect("kept").kid, first);
}

#[test]
fn the_thumbprint_is_that_of_rfc_8037() {
    // The key of RFC 8037, appendix A.1, and its thumbprint, A.3.
    let secret = BASE64_URL_SAFE_NO_PAD.decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A").expect("base64");
    let pair = ed25519_dalek::SigningKey::from_bytes(&secret.try_into().expect("32 bytes"));
    let key = SigningKey::of(pair, at(0));
    assert_eq!(key.x, "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo");
    assert_eq!(key.kid, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    assert!(!format!("{key:?}").contains(&key.to_pem().expect("a PEM")));
}

#[test]
fn a_key_of_openssl_is_read() {
    // `openssl genpkey -algorithm ed25519` with the secret of RFC 8410, 10.3.
    let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
    let key = SigningKey::from_pem(pem, at(0)).expect("a key");
    assert_eq!(key.to_pem().as_deref(), Some(pem));
}
