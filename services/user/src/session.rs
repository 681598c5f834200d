//! A log-in's session and its refresh tokens.
//!
//! A token is a *family* that all tokens of the session share, and a *turn* that changes with every refresh, both
//! random. Only their hashes are stored: one row per session, whatever its age. The newest token is accepted, the one before
//! it for a short while more (its answer may have been lost); an older one was stolen, or its thief was faster: it ends
//! the session. Who does not know the family cannot end anything.
//!
//! Several refreshes with one token within the grace (a browser's tabs, an answer that was lost) are one turn: each gets a
//! token of its own, all of them are the newest, and the grace is counted from the first.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use kernel::{SessionId, Timestamp, UserId};
use sha2::{Digest, Sha256};

const FAMILY_BYTES: usize = 16;
const TURN_BYTES: usize = 32;

/// A session's refresh token. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RefreshToken {
    family: [u8; FAMILY_BYTES],
    turn: [u8; TURN_BYTES],
}

impl RefreshToken {
    /// The first of a new session.
    pub(crate) fn random() -> Self {
        Self { family: rand::random(), turn: rand::random() }
    }

    /// The next of the same session.
    pub(crate) fn next(&self) -> Self {
        Self { family: self.family, turn: rand::random() }
    }

    /// Reads a token's text.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
        let (family, turn) = bytes.split_first_chunk::<FAMILY_BYTES>()?;
        Some(Self { family: *family, turn: turn.try_into().ok()? })
    }

    /// The text that a client keeps: a secret.
    pub(crate) fn expose(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode([self.family.as_slice(), &self.turn].concat())
    }

    /// What the session is found by.
    pub(crate) fn family_hash(&self) -> String {
        hex_sha256(&[&self.family])
    }

    /// What this token is recognised by.
    pub(crate) fn hash(&self) -> String {
        hex_sha256(&[&self.family, &self.turn])
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

/// The tokens of one turn that are remembered: a client that takes more of them forgets its oldest.
const MAX_TOKENS_OF_A_TURN: usize = 32;

/// The hashes of the tokens that one turn gave, in the order of their making.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Hashes(Vec<String>);

impl Hashes {
    pub(crate) fn one(hash: impl Into<String>) -> Self {
        Self(vec![hash.into()])
    }

    /// As one column's text: hexadecimal, separated by spaces.
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
        if self.0.len() >= MAX_TOKENS_OF_A_TURN {
            self.0.remove(0);
        }
        self.0.push(hash.to_owned());
        self
    }
}

/// The tokens before the newest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Previous {
    pub(crate) hashes: Hashes,
    pub(crate) accepted_until: Timestamp,
}

/// A log-in's session.
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
    /// A new session, and the first token of it.
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
    pub(crate) fn turned(self, presented_hash: &str, next_hash: &str, now: Timestamp, grace: Duration) -> Option<Self> {
        if now >= self.expires {
            return None;
        }
        if self.newest.has(presented_hash) {
            let previous = Some(Previous { hashes: self.newest, accepted_until: now.plus(grace) });
            return Some(Self { newest: Hashes::one(next_hash), previous, ..self });
        }
        // The same turn once more: whoever got the newest may still use it.
        let is_same_turn = self
            .previous
            .as_ref()
            .is_some_and(|previous| previous.hashes.has(presented_hash) && now < previous.accepted_until);
        is_same_turn.then(|| Self { newest: self.newest.clone().and(next_hash), ..self })
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

    fn turn(session: &Session, token: &RefreshToken, after: Duration) -> Option<(Session, RefreshToken)> {
        let next = token.next();
        session.clone().turned(&token.hash(), &next.hash(), start().plus(after), GRACE).map(|session| (session, next))
    }

    #[test]
    fn a_token_reads_what_it_says_and_shows_nothing_of_it() {
        let token = RefreshToken::random();
        assert_eq!(RefreshToken::parse(&token.expose()), Some(token.clone()));
        assert_eq!(format!("{token:?}"), "RefreshToken(..)");
        let short = &token.expose()[1..];
        for text in ["", "nonsense!", short, &"A".repeat(65), &"A".repeat(4_000)] {
            assert_eq!(RefreshToken::parse(text), None, "{text}");
        }
    }

    #[test]
    fn tokens_of_a_session_share_their_family_and_nothing_else() {
        let token = RefreshToken::random();
        let next = token.next();
        assert_eq!(token.family_hash(), next.family_hash());
        assert_ne!(token.hash(), next.hash());
        assert_ne!(token.family_hash(), RefreshToken::random().family_hash());
    }

    #[test]
    fn the_newest_is_accepted_at_any_time_until_the_session_ends() {
        let (session, first) = opened();
        let (session, second) = turn(&session, &first, Duration::from_secs(900)).expect("the newest");
        assert!(turn(&session, &second, LIFETIME - Duration::from_micros(1)).is_some());
        assert!(turn(&session, &second, LIFETIME).is_none());
    }

    #[test]
    fn the_one_before_the_newest_is_accepted_for_thirty_seconds() {
        let (session, first) = opened();
        let (session, _lost) = turn(&session, &first, Duration::ZERO).expect("the newest");
        assert!(turn(&session, &first, GRACE - Duration::from_micros(1)).is_some());
        assert!(turn(&session, &first, GRACE).is_none());
    }

    #[test]
    fn after_a_repeated_refresh_both_new_tokens_work() {
        let (session, first) = opened();
        let (session, one) = turn(&session, &first, Duration::ZERO).expect("the newest");
        let (session, other) = turn(&session, &first, Duration::from_secs(1)).expect("the one before");
        assert!(turn(&session, &one, Duration::from_secs(2)).is_some());
        assert!(turn(&session, &other, Duration::from_secs(2)).is_some());
    }

    #[test]
    fn all_refreshes_with_one_token_within_its_grace_are_one_turn() {
        let (mut session, first) = opened();
        let mut given = vec![];
        for second in 0..20 {
            let (turned, token) = turn(&session, &first, Duration::from_secs(second)).expect("the same turn");
            session = turned;
            given.push(token);
        }
        for token in &given {
            assert!(turn(&session, token, Duration::from_secs(600)).is_some(), "each is the newest");
        }
        assert!(turn(&session, &first, GRACE).is_none(), "the grace is the first refresh's");
        // The next turn's tokens are accepted together too, and end together.
        for token in &given {
            (session, _) = turn(&session, token, Duration::from_secs(600)).expect("the next turn");
        }
        for token in &given {
            assert!(turn(&session, token, Duration::from_secs(600) + GRACE).is_none(), "a stolen one is found");
        }
        assert!(turn(&session, &first, Duration::from_secs(601)).is_none(), "an older one");
    }

    #[test]
    fn the_tokens_of_a_turn_are_bounded_and_read_as_they_were_stored() {
        let mut hashes = Hashes::one("0");
        for number in 1..100 {
            hashes = hashes.and(&number.to_string());
        }
        assert_eq!(hashes.0.len(), MAX_TOKENS_OF_A_TURN);
        assert!(hashes.has("99") && !hashes.has("0"));
        assert_eq!(Hashes::from_stored(&hashes.as_stored()), hashes);
    }

    #[test]
    fn an_older_one_ends_the_session() {
        let (session, first) = opened();
        let (session, second) = turn(&session, &first, Duration::ZERO).expect("the newest");
        let (session, _third) = turn(&session, &second, Duration::from_secs(1)).expect("the newest");
        assert!(turn(&session, &first, Duration::from_secs(2)).is_none());
        assert!(turn(&session, &second, Duration::from_secs(2)).is_some(), "while the one before would not");
    }
}
