//! From messages to values and back, with all rules of the fields.

use std::net::{IpAddr, Ipv4Addr};

use chassis::page::page_size;
use chassis::{Fields, Fingerprint, Invalid, PageToken, to_proto};
use contracts::common::v1 as common;
use contracts::user::v1 as proto;
use kernel::{SessionId, UserId};
use mesh::Caller;

use crate::account::{Address, Login, PasswordUpdate, Profile, ProfileChange, Registration, Role};
use crate::error::Error;
use crate::keys::SigningKey;
use crate::password::{MAX_PASSWORD_BYTES, MIN_PASSWORD_CHARS, Password};
use crate::session::RefreshToken;
use crate::users::{AccountRef, Person, Tokens};

/// Ended sessions per page.
const DEFAULT_PAGE: u32 = 1_000;
const MAX_PAGE: u32 = 10_000;
/// In characters (code points).
const MAX_DISPLAY_NAME: usize = 100;

pub(crate) fn person(extensions: &tonic::Extensions) -> Result<Person, Error> {
    match mesh::caller(extensions) {
        Caller::User { user_id, role, session_id, .. } => Ok(Person {
            user_id: UserId::from_uuid(user_id),
            role: match role {
                mesh::Role::Customer => Role::Customer,
                mesh::Role::Operator => Role::Operator,
            },
            session_id: session_id.map(SessionId::from_uuid),
        }),
        Caller::Anonymous | Caller::Service { .. } => Err(Error::UserTokenRequired),
    }
}

/// The client's address.
pub(crate) fn address_of(extensions: &tonic::Extensions) -> IpAddr {
    mesh::peer(extensions).map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.ip())
}

impl TryFrom<proto::RegisterRequest> for Registration {
    type Error = Invalid;

    fn try_from(request: proto::RegisterRequest) -> Result<Self, Invalid> {
        let mut fields = Fields::default();
        let request_id = fields.request_id(&request.request_id);
        let email = fields.email("email", &request.email);
        let password = new_password(&mut fields, "password", &request.password);
        let display_name = fields.text("display_name", &request.display_name, 1, MAX_DISPLAY_NAME);
        let all = request_id.zip(email).zip(password.zip(display_name));
        let ((request_id, email), (password, display_name)) = fields.finish(all)?;
        Ok(Self { request_id, email, password, display_name })
    }
}

impl TryFrom<proto::LoginRequest> for Login {
    type Error = Invalid;

    fn try_from(request: proto::LoginRequest) -> Result<Self, Invalid> {
        let mut fields = Fields::default();
        let email = fields.known_email("email", &request.email);
        let password = presented_password(&mut fields, "password", &request.password);
        fields.finish(email.zip(password).map(|(email, password)| Self { email, password }))
    }
}

impl TryFrom<proto::ChangePasswordRequest> for PasswordUpdate {
    type Error = Invalid;

    fn try_from(request: proto::ChangePasswordRequest) -> Result<Self, Invalid> {
        let mut fields = Fields::default();
        let current = presented_password(&mut fields, "current_password", &request.current_password);
        let new = new_password(&mut fields, "new_password", &request.new_password);
        fields.finish(current.zip(new).map(|(current, new)| Self { current, new }))
    }
}

/// A new password. Control characters are rejected, among them NUL, at which bcrypt might end (RFC 8265, 4.2.2).
pub(crate) fn new_password(fields: &mut Fields, field: &str, text: &str) -> Option<Password> {
    let password = Password::new(text);
    if text.chars().any(char::is_control) {
        fields.reject(field, "CONTROL_CHARACTER", "must not contain control characters");
    } else if password.length() < MIN_PASSWORD_CHARS {
        fields.reject(field, "PASSWORD_TOO_SHORT", format!("must have at least {MIN_PASSWORD_CHARS} characters"));
    } else if !password.fits() {
        too_long(fields, field);
    } else {
        return Some(password);
    }
    None
}

/// A password to check. Whether it is too short, or breaks newer rules, is not revealed: it does not match.
fn presented_password(fields: &mut Fields, field: &str, text: &str) -> Option<Password> {
    let password = Password::new(text);
    if text.is_empty() {
        fields.reject(field, "REQUIRED", "is required");
    } else if !password.may_be_known() {
        too_long(fields, field);
    } else {
        return Some(password);
    }
    None
}

fn too_long(fields: &mut Fields, field: &str) {
    let description = format!("must have at most {MAX_PASSWORD_BYTES} bytes of UTF-8 in Normalization Form C");
    fields.reject(field, "PASSWORD_TOO_LONG", description);
}

impl TryFrom<proto::EndSessionsRequest> for AccountRef {
    type Error = Invalid;

    fn try_from(request: proto::EndSessionsRequest) -> Result<Self, Invalid> {
        use proto::end_sessions_request::Person as Named;

        let mut fields = Fields::default();
        let account = match request.person {
            Some(Named::UserId(text)) => fields.id("user_id", &text).map(Self::Id),
            Some(Named::Email(text)) => fields.known_email("email", &text).map(Self::Email),
            None => {
                fields.reject("person", "REQUIRED", "user_id or email is required");
                None
            }
        };
        fields.finish(account)
    }
}

/// The requested page of ended sessions.
pub(crate) struct EndedSessions {
    pub(crate) token: PageToken<SessionId>,
    pub(crate) page_size: u32,
}

impl TryFrom<proto::ListEndedSessionsRequest> for EndedSessions {
    type Error = Invalid;

    fn try_from(request: proto::ListEndedSessionsRequest) -> Result<Self, Invalid> {
        let mut fields = Fields::default();
        let page_size = page_size(&mut fields, request.page_size, DEFAULT_PAGE, MAX_PAGE);
        let list = Fingerprint::of("ListEndedSessions/1");
        let token = PageToken::decode(&mut fields, &request.page_token, list, |key| key.parse().ok());
        fields.finish(Some(Self { token, page_size }))
    }
}

/// A page of the list; `ended` has one more session than the page if there is a next one.
pub(crate) fn ended_sessions(mut ended: Vec<SessionId>, list: &EndedSessions) -> proto::ListEndedSessionsResponse {
    let page_size = usize::try_from(list.page_size).unwrap_or(usize::MAX);
    let has_next = ended.len() > page_size;
    ended.truncate(page_size);
    let last = ended.last().filter(|_| has_next);
    proto::ListEndedSessionsResponse {
        next_page_token: last.map(|last| list.token.next(&last.to_string())).unwrap_or_default(),
        session_ids: ended.iter().map(ToString::to_string).collect(),
    }
}

/// A number of sessions as the contract has it.
pub(crate) fn count(sessions: u64) -> i32 {
    i32::try_from(sessions).unwrap_or(i32::MAX)
}

impl TryFrom<proto::RefreshSessionRequest> for RefreshToken {
    type Error = Invalid;

    fn try_from(request: proto::RefreshSessionRequest) -> Result<Self, Invalid> {
        refresh_token(&request.refresh_token)
    }
}

impl TryFrom<proto::LogoutRequest> for RefreshToken {
    type Error = Invalid;

    fn try_from(request: proto::LogoutRequest) -> Result<Self, Invalid> {
        refresh_token(&request.refresh_token)
    }
}

fn refresh_token(text: &str) -> Result<RefreshToken, Invalid> {
    let mut fields = Fields::default();
    let token = RefreshToken::parse(text);
    if text.is_empty() {
        fields.reject("refresh_token", "REQUIRED", "is required");
    } else if token.is_none() {
        fields.reject("refresh_token", "INVALID_REFRESH_TOKEN", "not a refresh token of Login or RefreshSession");
    }
    fields.finish(token)
}

/// The fields of a profile that can be changed.
const CHANGEABLE: [&str; 3] = ["display_name", "phone", "address"];
/// The fields that the service sets: in a request they are ignored, also in a mask (AIP-203).
const OUTPUT_ONLY: [&str; 4] = ["user_id", "role", "create_time", "update_time"];

/// The fields that the update sets, by AIP-134: those named by the mask, all of them if it is `*`, and without a mask
/// those that are present.
impl TryFrom<proto::UpdateProfileRequest> for ProfileChange {
    type Error = Invalid;

    fn try_from(request: proto::UpdateProfileRequest) -> Result<Self, Invalid> {
        let mut fields = Fields::default();
        let Some(profile) = request.profile else {
            fields.reject("profile", "REQUIRED", "is required, with the new values of the fields that the mask names");
            return fields.finish(None);
        };
        let paths = request.update_mask.unwrap_or_default().paths;
        let named = named(&mut fields, &profile, &paths);
        let mut change = Self::default();
        if named.contains(&"display_name") {
            change.display_name = fields.text("profile.display_name", &profile.display_name, 1, MAX_DISPLAY_NAME);
        }
        if named.contains(&"phone") {
            change.phone = Some(profile.phone.as_deref().and_then(|text| phone(&mut fields, text)));
        }
        if named.contains(&"address") {
            change.address = Some(profile.address.as_ref().and_then(|address| profile_address(&mut fields, address)));
        }
        let is_email_named = paths.iter().any(|path| path == "email");
        let is_email_present = (paths.is_empty() || is_whole(&paths)) && !profile.email.is_empty();
        change.known_email = (is_email_named || is_email_present).then(|| profile.email.to_ascii_lowercase());
        fields.finish(Some(change))
    }
}

fn is_whole(paths: &[String]) -> bool {
    matches!(paths, [only] if only == "*")
}

/// The changeable fields that a mask names.
fn named(fields: &mut Fields, profile: &proto::Profile, paths: &[String]) -> Vec<&'static str> {
    if is_whole(paths) {
        return CHANGEABLE.to_vec();
    }
    if paths.is_empty() {
        let is_present = [!profile.display_name.is_empty(), profile.phone.is_some(), profile.address.is_some()];
        return CHANGEABLE
            .into_iter()
            .zip(is_present)
            .filter_map(|(name, is_present)| is_present.then_some(name))
            .collect();
    }
    for (index, path) in paths.iter().enumerate() {
        let is_known = |known: &&str| *known == path;
        if path == "*" {
            let description = "means all fields, and must be the only path";
            fields.reject(format!("update_mask.paths[{index}]"), "WILDCARD_NOT_ALONE", description);
        } else if path != "email" && !CHANGEABLE.iter().chain(&OUTPUT_ONLY).any(is_known) {
            let description =
                "not a field of a profile; display_name, phone and address can be changed, each as a whole";
            fields.reject(format!("update_mask.paths[{index}]"), "UNKNOWN_FIELD", description);
        }
    }
    CHANGEABLE.into_iter().filter(|name| paths.iter().any(|path| path == name)).collect()
}

/// E.164: a plus, no zero first, 7 to 15 digits.
fn phone(fields: &mut Fields, text: &str) -> Option<String> {
    let digits = text.strip_prefix('+').unwrap_or_default();
    let is_valid = (7..=15).contains(&digits.len())
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && !digits.starts_with('0');
    if !is_valid {
        fields.reject(
            "profile.phone",
            "INVALID_PHONE",
            "not a telephone number in E.164 form, for example +4930123456",
        );
    }
    is_valid.then(|| text.to_owned())
}

fn profile_address(fields: &mut Fields, address: &common::Address) -> Option<Address> {
    let common::Address { recipient, lines, city, postal_code, country_code } =
        fields.address("profile.address", Some(address))?;
    Some(Address { recipient, lines, city, postal_code, country_code })
}

impl From<Profile> for proto::Profile {
    fn from(profile: Profile) -> Self {
        let role = match profile.role {
            Role::Customer => proto::Role::Customer,
            Role::Operator => proto::Role::Operator,
        };
        Self {
            user_id: profile.user_id.to_string(),
            email: profile.email,
            display_name: profile.display_name,
            phone: profile.phone,
            address: profile.address.map(|Address { recipient, lines, city, postal_code, country_code }| {
                common::Address { recipient, lines, city, postal_code, country_code }
            }),
            role: role.into(),
            create_time: Some(to_proto::timestamp(profile.created)),
            update_time: Some(to_proto::timestamp(profile.updated)),
        }
    }
}

impl From<Tokens> for proto::Session {
    fn from(tokens: Tokens) -> Self {
        Self {
            session_id: tokens.session.id.to_string(),
            access_token: tokens.access.expose().to_owned(),
            access_token_expire_time: Some(to_proto::timestamp(tokens.access.expires)),
            refresh_token: tokens.refresh.expose(),
            refresh_token_expire_time: Some(to_proto::timestamp(tokens.session.expires)),
        }
    }
}

impl From<&SigningKey> for proto::SigningKey {
    fn from(key: &SigningKey) -> Self {
        Self {
            kid: key.kid.clone(),
            kty: "OKP".to_owned(),
            crv: "Ed25519".to_owned(),
            x: key.x.clone(),
            alg: "EdDSA".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod fuzz;
