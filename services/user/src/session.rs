//! A session and its refresh tokens.
//!
//! A token consists of a *family*, which all tokens of the session share, and a *secret*, which changes with every
//! rotation (refresh token rotation, RFC 9700, 4.14.2); both are random. Only their hashes are stored: one row per
//! session, whatever its age. The newest token is accepted, and for a short grace period the previous one (its response
//! may have been lost). An older one means that a token was stolen, so it ends the session. Without the family, nothing
//! can be ended.
//!
//! Several refreshes with one token within the grace period (a browser's tabs, a lost response) are one rotation: each
//! gets its own token, all of them are the newest, and the grace period is counted from the first.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use kernel::{SessionId, Timestamp, UserId};
use sha2::{Digest, Sha256};

const FAMILY_BYTES: usize = 16;
const SECRET_BYTES: usize = 32;

/// A session's refresh token. Never logged.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RefreshToken {
    family: [u8; FAMILY_BYTES],
    secret: [u8; SECRET_BYTES],
}

impl RefreshToken {
    /// The first token of a new session.
    pub(crate) fn random() -> Self {
        Self { family: rand::random(), secret: rand::random() }
    }

    /// The next token of the same session.
    pub(crate) fn next(&self) -> Self {
        Self { family: self.family, secret: rand::random() }
    }

    /// Reads a token's text.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
        let (family, secret) = bytes.split_first_chunk::<FAMILY_BYTES>()?;
        Some(Self { family: *family, secret: secret.try_into().ok()? })
    }

    /// The text for the client: a secret.
    pub(crate) fn expose(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode([self.family.as_slice(), &self.secret].concat())
    }

    /// The key by which the session is found.
    pub(crate) fn family_hash(&self) -> String {
        hex_sha256(&[&self.family])
    }

    /// The hash by which this token is recognised.
    pub(crate) fn hash(&self) -> String {
        hex_sha256(&[&self.family, &self.secret])
    }
}

impl fmt::Debug for RefreshToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RefreshToken(..)")
    }
}

fn hex_sha256(parts: &[&[u8]]) -> String {
    Sha256::digest(parts.concat()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The remembered tokens of one rotation: beyond that, the oldest is dropped.
const MAX_TOKENS_OF_A_ROTATION: usize = 32;

/// The hashes of the tokens of one rotation, in order of creation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Hashes(Vec<String>);

impl Hashes {
    pub(crate) fn one(hash: impl Into<String>) -> Self {
        Self(vec![hash.into()])
    }

    /// As the text of one column: hexadecimal, separated by spaces.
    pub(crate) fn from_stored(text: &str) -> Self {
        Self(text.split(' ').map(str::to_owned).collect())
    }

    pub(crate) fn as_stored(&self) -> String {
        self.0.join(" ")
    }

    fn has(&self, hash: &str) -> bool {
        self.0.iter().any(|known| known == hash)
    }

    fn and(mut self, hash: &str) -> Self {
        if self.0.len() >= MAX_TOKENS_OF_A_ROTATION {
            self.0.remove(0);
        }
        self.0.push(hash.to_owned());
        self
    }
}

/// The tokens of the previous rotation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Previous {
    pub(crate) hashes: Hashes,
    pub(crate) accepted_until: Timestamp,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) user_id: UserId,
    pub(crate) family_hash: String,
    pub(crate) newest: Hashes,
    pub(crate) previous: Option<Previous>,
    pub(crate) created: Timestamp,
    pub(crate) expires: Timestamp,
}

impl Session {
    /// A new session, and its first token.
    pub(crate) fn open(id: SessionId, user_id: UserId, now: Timestamp, lifetime: Duration) -> (Self, RefreshToken) {
        let token = RefreshToken::random();
        let session = Self {
            id,
            user_id,
            family_hash: token.family_hash(),
            newest: Hashes::one(token.hash()),
            previous: None,
            created: now,
            expires: now.plus(lifetime),
        };
        (session, token)
    }

    /// The session after `presented` was exchanged for `next`; `None`: the session ends.
    pub(crate) fn rotated(
        self,
        presented_hash: &str,
        next_hash: &str,
        now: Timestamp,
        grace: Duration,
    ) -> Option<Self> {
        if now >= self.expires {
            return None;
        }
        if self.newest.has(presented_hash) {
            let previous = Some(Previous { hashes: self.newest, accepted_until: now.plus(grace) });
            return Some(Self { newest: Hashes::one(next_hash), previous, ..self });
        }
        // The same rotation again: the newest tokens stay valid.
        let is_same_rotation = self
            .previous
            .as_ref()
            .is_some_and(|previous| previous.hashes.has(presented_hash) && now < previous.accepted_until);
        is_same_rotation.then(|| Self { newest: self.newest.clone().and(next_hash), ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::{IdSource, SystemIds};

    const GRACE: Duration = Duration::from_secs(30);
    const LIFETIME: Duration = Duration::from_secs(3_600);

    fn start() -> Timestamp {
        Timestamp::from_micros(1_000_000_000)
    }

    fn opened() -> (Session, RefreshToken) {
        Session::open(SessionId::from_uuid(SystemIds.uuid()), UserId::from_uuid(SystemIds.uuid()), start(), LIFETIME)
    }

    fn rotate(session: &Session, token: &RefreshToken, after: Duration) -> Option<(Session, RefreshToken)> {
        let next = token.next();
        session.clone().rotated(&token.hash(), &next.hash(), start().plus(after), GRACE).map(|session| (session, next))
    }

    #[test]
    fn a_token_is_parsed_back_and_never_printed() {
        let token = RefreshToken::random();
        assert_eq!(RefreshToken::parse(&token.expose()), Some(token.clone()));
        assert_eq!(format!("{token:?}"), "RefreshToken(..)");
        let short = &token.expose()[1..];
        for text in ["", "nonsense!", short, &"A".repeat(65), &"A".repeat(4_000)] {
            assert_eq!(RefreshToken::parse(text), None, "{text}");
        }
    }

    #[test]
    fn tokens_of_a_session_share_only_their_family() {
        let token = RefreshToken::random();
        let next = token.next();
        assert_eq!(token.family_hash(), next.family_hash());
        assert_ne!(token.hash(), next.hash());
        assert_ne!(token.family_hash(), RefreshToken::random().family_hash());
    }

    #[test]
    fn the_newest_token_is_accepted_until_the_session_ends() {
        let (session, first) = opened();
        let (session, second) = rotate(&session, &first, Duration::from_secs(900)).expect("the newest token");
        assert!(rotate(&session, &second, LIFETIME - Duration::from_micros(1)).is_some());
        assert!(rotate(&session, &second, LIFETIME).is_none());
    }

    #[test]
    fn the_previous_token_is_accepted_for_thirty_seconds() {
        let (session, first) = opened();
        let (session, _lost) = rotate(&session, &first, Duration::ZERO).expect("the newest token");
        assert!(rotate(&session, &first, GRACE - Duration::from_micros(1)).is_some());
        assert!(rotate(&session, &first, GRACE).is_none());
    }

    #[test]
    fn after_a_repeated_refresh_both_new_tokens_work() {
        let (session, first) = opened();
        let (session, one) = rotate(&session, &first, Duration::ZERO).expect("the newest token");
        let (session, other) = rotate(&session, &first, Duration::from_secs(1)).expect("the previous token");
        assert!(rotate(&session, &one, Duration::from_secs(2)).is_some());
        assert!(rotate(&session, &other, Duration::from_secs(2)).is_some());
    }

    #[test]
    fn all_refreshes_with_one_token_within_its_grace_are_one_rotation() {
        let (mut session, first) = opened();
        let mut given = vec![];
        for second in 0..20 {
            let (rotated, token) = rotate(&session, &first, Duration::from_secs(second)).expect("the same rotation");
            session = rotated;
            given.push(token);
        }
        for token in &given {
            assert!(rotate(&session, token, Duration::from_secs(600)).is_some(), "each is a newest token");
        }
        assert!(rotate(&session, &first, GRACE).is_none(), "the grace period starts with the first refresh");
        // The next rotation's tokens are accepted together too, and expire together.
        for token in &given {
            (session, _) = rotate(&session, token, Duration::from_secs(600)).expect("the next rotation");
        }
        for token in &given {
            assert!(rotate(&session, token, Duration::from_secs(600) + GRACE).is_none(), "a stolen token is detected");
        }
        assert!(rotate(&session, &first, Duration::from_secs(601)).is_none(), "an older token");
    }

    #[test]
    fn the_tokens_of_a_rotation_are_bounded_and_stored_losslessly() {
        let mut hashes = Hashes::one("0");
        for number in 1..100 {
            hashes = hashes.and(&number.to_string());
        }
        assert_eq!(hashes.0.len(), MAX_TOKENS_OF_A_ROTATION);
        assert!(hashes.has("99") && !hashes.has("0"));
        assert_eq!(Hashes::from_stored(&hashes.as_stored()), hashes);
    }

    #[test]
    fn an_older_token_ends_the_session() {
        let (session, first) = opened();
        let (session, second) = rotate(&session, &first, Duration::ZERO).expect("the newest token");
        let (session, _third) = rotate(&session, &second, Duration::from_secs(1)).expect("the newest token");
        assert!(rotate(&session, &first, Duration::from_secs(2)).is_none());
        assert!(
            rotate(&session, &second, Duration::from_secs(2)).is_some(),
            "control: the previous token does not end it"
        );
    }
}
