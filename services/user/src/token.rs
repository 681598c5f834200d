//! Access tokens: EdDSA JWTs that every service verifies locally. They end when they expire, or with their session
//! (`store::ended`).

use std::time::Duration;

use chassis::keys::{AUDIENCE, ISSUER};
use jsonwebtoken::{Algorithm, Header, encode};
use kernel::{Secret, SessionId, Timestamp, UserId};
use serde::Serialize;

use crate::account::Role;
use crate::error::Error;
use crate::keys::SigningKey;

#[derive(Serialize)]
struct Claims {
    iss: &'static str,
    aud: &'static str,
    sub: String,
    /// The session: ChangePassword leaves it open, and the list of ended sessions names it.
    sid: String,
    role: &'static str,
    nbf: i64,
    exp: i64,
}

/// The subject of a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Bearer {
    pub(crate) user_id: UserId,
    pub(crate) session_id: SessionId,
    pub(crate) role: Role,
}

/// A signed access token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct AccessToken {
    text: Secret<String>,
    /// The expiry, in whole seconds.
    pub(crate) expires: Timestamp,
}

impl AccessToken {
    /// Signs a token that expires after `lifetime`, in whole seconds.
    pub(crate) fn sign(bearer: Bearer, key: &SigningKey, now: Timestamp, lifetime: Duration) -> Result<Self, Error> {
        let seconds = |at: Timestamp| at.as_micros().div_euclid(1_000_000);
        let exp = seconds(now.plus(lifetime));
        let claims = Claims {
            iss: ISSUER,
            aud: AUDIENCE,
            sub: bearer.user_id.to_string(),
            sid: bearer.session_id.to_string(),
            role: bearer.role.name(),
            nbf: seconds(now),
            exp,
        };
        let header = Header { kid: Some(key.kid.clone()), ..Header::new(Algorithm::EdDSA) };
        let text = encode(&header, &claims, key.encoding()).map_err(Error::Sign)?;
        Ok(Self { text: Secret::new(text), expires: Timestamp::from_micros(exp.saturating_mul(1_000_000)) })
    }

    /// The JWT: a secret.
    pub(crate) fn expose(&self) -> &str {
        self.text.expose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{DecodingKey, Validation, decode, decode_header};
    use kernel::{Clock, IdSource, SystemClock, SystemIds};

    #[test]
    fn a_token_has_subject_and_expiry_and_verifies_with_the_public_key() {
        let key = SigningKey::generate();
        let bearer = Bearer {
            user_id: UserId::from_uuid(SystemIds.uuid()),
            session_id: SessionId::from_uuid(SystemIds.uuid()),
            role: Role::Operator,
        };
        let now = SystemClock.now();
        let token = AccessToken::sign(bearer, &key, now, Duration::from_secs(900)).expect("signed");
        assert!(token.expires <= now.plus(Duration::from_secs(900)));
        assert!(token.expires > now.plus(Duration::from_secs(898)));
        let header = decode_header(token.expose()).expect("a header");
        assert_eq!((header.alg, header.kid.as_deref()), (Algorithm::EdDSA, Some(key.kid.as_str())));
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_required_spec_claims(&["iss", "sub", "aud", "exp", "nbf"]);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        validation.validate_nbf = true;
        let verifying = DecodingKey::from_ed_components(&key.x).expect("a public key");
        let claims = decode::<serde_json::Value>(token.expose(), &verifying, &validation).expect("it verifies").claims;
        assert_eq!(claims["sub"], bearer.user_id.to_string());
        assert_eq!(claims["sid"], bearer.session_id.to_string());
        assert_eq!(claims["role"], "operator");
        let other = DecodingKey::from_ed_components(&SigningKey::generate().x).expect("a public key");
        assert!(decode::<serde_json::Value>(token.expose(), &other, &validation).is_err());
        assert!(!format!("{token:?}").contains(token.expose()));
    }
}
