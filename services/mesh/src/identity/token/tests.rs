use super::*;

/// A key is 32 bytes; this is the curve's base point, which can be parsed.
const X: &str = "WGZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmY";

struct Source(Mutex<Vec<&'static str>>);

impl KeySource for Source {
    fn fetch(&self) -> BoxFuture<'_, Result<Vec<VerifyingKey>, Status>> {
        let kids = self.0.lock().clone();
        let keys = kids.into_iter().map(|kid| VerifyingKey { kid: kid.to_owned(), x: X.to_owned() }).collect();
        Box::pin(async move { Ok(keys) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_revoked_key_stops_verifying_within_a_minute() {
    let source = Arc::new(Source(Mutex::new(vec!["old", "new"])));
    let tokens = Arc::new(Tokens::new(source.clone(), "iss".into(), "aud".into()));
    let following = tokio::spawn({
        let tokens = tokens.clone();
        async move { tokens.follow().await }
    });
    let hash = [7; 32];
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(tokens.keys().len(), 2);
    tokens.cache("new", hash, Caller::Anonymous, SystemClock.now().plus(Duration::from_secs(900)));
    tokio::time::sleep(KEYS_INTERVAL).await;
    assert!(tokens.cached(&hash).is_some(), "control: no key was revoked");
    source.0.lock().retain(|kid| *kid == "new");
    tokio::time::sleep(KEYS_INTERVAL).await;
    assert_eq!(tokens.keys().keys().collect::<Vec<_>>(), ["new"]);
    assert!(tokens.cached(&hash).is_none(), "it must be verified again");
    following.abort();
}

/// Has initial keys, and is unavailable while `fetched` is `None`.
struct Away {
    fetched: Mutex<Option<Vec<&'static str>>>,
}

fn key(kid: &str) -> VerifyingKey {
    VerifyingKey { kid: kid.to_owned(), x: X.to_owned() }
}

impl KeySource for Away {
    fn fetch(&self) -> BoxFuture<'_, Result<Vec<VerifyingKey>, Status>> {
        let fetched = self.fetched.lock().clone();
        Box::pin(async move {
            let kids = fetched.ok_or_else(|| Status::unavailable("away"))?;
            Ok(kids.into_iter().map(key).collect())
        })
    }

    fn initial(&self) -> Vec<VerifyingKey> {
        vec![key("kept"), key("leaked")]
    }
}

#[tokio::test(start_paused = true)]
async fn initial_keys_verify_only_until_the_first_fetch() {
    let source = Arc::new(Away { fetched: Mutex::default() });
    let tokens = Arc::new(Tokens::new(source.clone(), "iss".into(), "aud".into()));
    let following = tokio::spawn({
        let tokens = tokens.clone();
        async move { tokens.follow().await }
    });
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    let began = Instant::now();
    assert!(tokens.key("kept").await.is_ok() && tokens.key("leaked").await.is_ok());
    assert_eq!(began.elapsed(), Duration::ZERO, "without a fetch");
    let unknown = tokens.key("new").await.expect_err("rejected");
    assert_eq!(unknown.code(), Code::Unavailable, "it may be valid: {unknown:?}");
    tokens.cache("leaked", [7; 32], Caller::Anonymous, SystemClock.now().plus(Duration::from_secs(900)));
    *source.fetched.lock() = Some(vec!["kept", "new"]);
    tokio::time::sleep(PREFETCH_MAX_PAUSE).await;
    assert!(tokens.key("kept").await.is_ok() && tokens.key("new").await.is_ok());
    let gone = tokens.key("leaked").await.expect_err("rejected");
    assert_eq!(gone.code(), Code::Unauthenticated, "{gone:?}");
    assert!(tokens.cached(&[7; 32]).is_none(), "it must be verified again");
    *source.fetched.lock() = None;
    tokio::time::sleep(KEYS_INTERVAL * 2).await;
    assert!(tokens.key("kept").await.is_ok(), "kept when a later fetch fails");
    let gone = tokens.key("leaked").await.expect_err("rejected");
    assert_eq!(gone.code(), Code::Unauthenticated, "and the initial ones do not come back: {gone:?}");
    following.abort();
}

/// Answers when permitted.
struct Slow {
    asked: std::sync::atomic::AtomicUsize,
    may_answer: tokio::sync::Semaphore,
}

impl KeySource for Slow {
    fn fetch(&self) -> BoxFuture<'_, Result<Vec<VerifyingKey>, Status>> {
        self.asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Box::pin(async move {
            assert_eq!(crate::call::deadline::current(), None, "the fetch does not inherit the call's deadline");
            self.may_answer.acquire().await.expect("open").forget();
            Ok(vec![VerifyingKey { kid: "new".to_owned(), x: X.to_owned() }])
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_call_does_not_cancel_its_key_fetch() {
    let source =
        Arc::new(Slow { asked: std::sync::atomic::AtomicUsize::new(0), may_answer: tokio::sync::Semaphore::new(0) });
    let tokens = Arc::new(Tokens::new(source.clone(), "iss".into(), "aud".into()));
    let inbound = crate::call::deadline::InboundCall { deadline: Some(Instant::now()), is_retry: false };
    let call = crate::call::deadline::INBOUND_CALL.scope(inbound, tokens.key("unknown"));
    assert!(tokio::time::timeout(Duration::from_millis(1), call).await.is_err(), "cancelled");
    source.may_answer.add_permits(1);
    // The next call waits for the fetch that the first one began.
    assert!(tokens.key("new").await.is_ok());
    assert_eq!(source.asked.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn the_periodic_fetch_happens_whatever_calls_have_fetched() {
    let source = Arc::new(Source(Mutex::new(vec!["old"])));
    let tokens = Arc::new(Tokens::new(source.clone(), "iss".into(), "aud".into()));
    let following = tokio::spawn({
        let tokens = tokens.clone();
        async move { tokens.follow().await }
    });
    tokio::time::sleep(KEYS_INTERVAL - Duration::from_secs(1)).await;
    assert!(tokens.key("unknown").await.is_err(), "an unknown key id");
    *source.0.lock() = vec!["new"];
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(tokens.keys().keys().collect::<Vec<_>>(), ["new"]);
    following.abort();
}

/// One key, and a list of ended sessions set by the test; `None`: unavailable.
#[derive(Default)]
struct Ending(Mutex<Option<Vec<Uuid>>>);

impl KeySource for Ending {
    fn fetch(&self) -> BoxFuture<'_, Result<Vec<VerifyingKey>, Status>> {
        Box::pin(async { Ok(vec![key("new")]) })
    }

    fn ended_sessions(&self) -> BoxFuture<'_, Result<Vec<Uuid>, Status>> {
        let ended = self.0.lock().clone();
        Box::pin(async move { ended.ok_or_else(|| Status::unavailable("away")) })
    }
}

#[tokio::test(start_paused = true)]
async fn an_ended_session_is_rejected_within_a_minute_although_its_token_is_cached() {
    let source = Arc::new(Ending::default());
    let tokens = Arc::new(Tokens::new(source.clone(), "iss".into(), "aud".into()));
    let following = tokio::spawn({
        let tokens = tokens.clone();
        async move { tokens.follow().await }
    });
    let (ended, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
    tokio::time::sleep(Duration::from_secs(1)).await;
    for session in [ended, other] {
        let token_expires = SystemClock.now().plus(Duration::from_secs(900));
        let caller =
            Caller::User { user_id: Uuid::nil(), role: Role::Customer, token_expires, session_id: Some(session) };
        tokens.cache("new", Sha256::digest(session.to_string()).into(), caller, token_expires);
    }
    let verify = async |session: Uuid| tokens.verify(&session.to_string()).await;
    tokio::time::sleep(KEYS_INTERVAL).await;
    assert!(verify(ended).await.is_ok(), "control: it has not ended");
    let stream = tokio::spawn(tokens.clone().ended(ended));
    *source.0.lock() = Some(vec![ended]);
    tokio::time::sleep(KEYS_INTERVAL).await;
    let rejected = verify(ended).await.expect_err("it has ended");
    assert_eq!(crate::status::reason_of(&rejected).as_deref(), Some("SESSION_ENDED"));
    assert_eq!(stream.await.expect("it ends").code(), Code::Unauthenticated);
    assert!(verify(other).await.is_ok(), "another session");
    *source.0.lock() = None;
    tokio::time::sleep(KEYS_INTERVAL * 2).await;
    assert!(verify(ended).await.is_err(), "known ones are kept while the source is unavailable");
    *source.0.lock() = Some(vec![]);
    tokio::time::sleep(KEYS_INTERVAL).await;
    assert!(verify(ended).await.is_ok(), "off the list once its tokens have expired");
    following.abort();
}
