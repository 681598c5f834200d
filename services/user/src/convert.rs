//! Messages to values and back; every rule about a field.

use std::net::{IpAddr, Ipv4Addr};

use chassis::{Fields, Invalid, encode};
use contracts::common::v1 as common;
use contracts::user::v1 as pb;
use kernel::{SessionId, UserId};
use mesh::Caller;

use crate::account::{Address, Profile, ProfileChange, Registration, Role};
use crate::error::Error;
use crate::keys::SigningKey;
use crate::password::{MAX_PASSWORD_BYTES, MIN_PASSWORD_CHARS, Password};
use crate::session::RefreshToken;
use crate::users::{Person, Tokens};

/// In characters.
const MAX_DISPLAY_NAME: usize = 100;

/// The person who calls.
pub(crate) fn person(extensions: &tonic::Extensions) -> Result<Person, Error> {
    match mesh::caller(extensions) {
        Caller::Person { user_id, session_id, .. } => {
            Ok(Person { user_id: UserId::from_uuid(user_id), session_id: session_id.map(SessionId::from_uuid) })
        }
        Caller::Anonymous | Caller::Service { .. } => Err(Error::NotAPerson),
    }
}

/// Where the call comes from.
pub(crate) fn address_of(extensions: &tonic::Extensions) -> IpAddr {
    mesh::peer(extensions).map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.ip())
}

impl TryFrom<pb::RegisterRequest> for Registration {
    type Error = Invalid;

    fn try_from(request: pb::RegisterRequest) -> Result<Self, Invalid> {
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

/// An e-mail and its password.
pub(crate) fn login(request: pb::LoginRequest) -> Result<(String, Password), Invalid> {
    let mut fields = Fields::default();
    let email = fields.email("email", &request.email);
    let password = given_password(&mut fields, "password", &request.password);
    fields.finish(email.zip(password))
}

/// The current and the new password.
pub(crate) fn password_change(request: pb::ChangePasswordRequest) -> Result<(Password, Password), Invalid> {
    let mut fields = Fields::default();
    let current = given_password(&mut fields, "current_password", &request.current_password);
    let new = new_password(&mut fields, "new_password", &request.new_password);
    fields.finish(current.zip(new))
}

/// A password that is to be set.
pub(crate) fn new_password(fields: &mut Fields, field: &str, text: &str) -> Option<Password> {
    if text.chars().count() < MIN_PASSWORD_CHARS {
        fields.refuse(field, "PASSWORD_TOO_SHORT", format!("must have at least {MIN_PASSWORD_CHARS} characters"));
        return None;
    }
    not_too_long(fields, field, text)
}

/// A password that is to be checked: a short one is wrong, which is not told here.
fn given_password(fields: &mut Fields, field: &str, text: &str) -> Option<Password> {
    if text.is_empty() {
        fields.refuse(field, "REQUIRED", "is required");
        return None;
    }
    not_too_long(fields, field, text)
}

fn not_too_long(fields: &mut Fields, field: &str, text: &str) -> Option<Password> {
    if text.len() > MAX_PASSWORD_BYTES {
        let description = format!("must have at most {MAX_PASSWORD_BYTES} bytes of UTF-8");
        fields.refuse(field, "PASSWORD_TOO_LONG", description);
        return None;
    }
    Some(Password::new(text))
}

/// A refresh token, ours by its form.
pub(crate) fn refresh_token(text: &str) -> Result<RefreshToken, Invalid> {
    let mut fields = Fields::default();
    let token = RefreshToken::parse(text);
    if text.is_empty() {
        fields.refuse("refresh_token", "REQUIRED", "is required");
    } else if token.is_none() {
        fields.refuse(
            "refresh_token",
            "INVALID_REFRESH_TOKEN",
            "not a refresh token that Login or RefreshSession gave",
        );
    }
    fields.finish(token)
}

/// Those of the profile's fields that the mask names.
pub(crate) fn profile_change(request: pb::UpdateProfileRequest) -> Result<ProfileChange, Invalid> {
    let mut fields = Fields::default();
    let mut change = ProfileChange::default();
    if request.profile.is_none() {
        fields.refuse("profile", "REQUIRED", "is required, with the new values of the fields that the mask names");
    }
    let profile = request.profile.unwrap_or_default();
    let paths = request.update_mask.unwrap_or_default().paths;
    if paths.is_empty() {
        fields.refuse("update_mask", "EMPTY_MASK", "must name at least one of display_name, phone, address");
    }
    for (index, path) in paths.iter().enumerate() {
        match path.as_str() {
            "display_name" if change.display_name.is_none() => {
                change.display_name = fields.text("profile.display_name", &profile.display_name, 1, MAX_DISPLAY_NAME);
            }
            "phone" if change.phone.is_none() => {
                change.phone = Some(profile.phone.as_deref().and_then(|text| phone(&mut fields, text)));
            }
            "address" if change.address.is_none() => {
                change.address = Some(profile.address.as_ref().and_then(|given| address(&mut fields, given)));
            }
            "display_name" | "phone" | "address" => {}
            "user_id" | "email" | "role" | "create_time" | "update_time" => {
                let description = "cannot be changed; display_name, phone and address can";
                fields.refuse(format!("update_mask.paths[{index}]"), "IMMUTABLE_FIELD", description);
            }
            _ => {
                let description =
                    "no field of a profile; display_name, phone and address can be changed, each as a whole";
                fields.refuse(format!("update_mask.paths[{index}]"), "UNKNOWN_FIELD", description);
            }
        }
    }
    fields.finish(Some(change))
}

/// E.164: a plus, no zero first, 7 to 15 digits.
fn phone(fields: &mut Fields, text: &str) -> Option<String> {
    let digits = text.strip_prefix('+').unwrap_or_default();
    let sound = (7..=15).contains(&digits.len())
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && !digits.starts_with('0');
    if !sound {
        fields.refuse(
            "profile.phone",
            "INVALID_PHONE",
            "not a telephone number in E.164 form, for example +4930123456",
        );
    }
    sound.then(|| text.to_owned())
}

fn address(fields: &mut Fields, given: &common::Address) -> Option<Address> {
    let common::Address { recipient, lines, city, postal_code, country_code } =
        fields.address("profile.address", Some(given))?;
    Some(Address { recipient, lines, city, postal_code, country_code })
}

impl From<Profile> for pb::Profile {
    fn from(profile: Profile) -> Self {
        let role = match profile.role {
            Role::Customer => pb::Role::Customer,
            Role::Operator => pb::Role::Operator,
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
            create_time: Some(encode::timestamp(profile.created)),
            update_time: Some(encode::timestamp(profile.updated)),
        }
    }
}

impl From<Tokens> for pb::Session {
    fn from(tokens: Tokens) -> Self {
        Self {
            session_id: tokens.session.id.to_string(),
            access_token: tokens.access.expose().to_owned(),
            access_token_expire_time: Some(encode::timestamp(tokens.access.expires)),
            refresh_token: tokens.refresh.expose(),
            refresh_token_expire_time: Some(encode::timestamp(tokens.session.expires)),
        }
    }
}

impl From<&SigningKey> for pb::SigningKey {
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
mod rude;
