//! An account and its profile.

use kernel::{RequestId, Timestamp, UserId};
use serde::{Deserialize, Serialize};

use crate::password::{Password, PasswordHash};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// Places orders.
    Customer,
    /// Runs the platform.
    Operator,
}

impl Role {
    /// The name in the database and in access tokens.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Operator => "operator",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Customer, Self::Operator].into_iter().find(|role| role.name() == name)
    }
}

/// The default delivery address.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Address {
    pub(crate) recipient: String,
    pub(crate) lines: Vec<String>,
    pub(crate) city: String,
    pub(crate) postal_code: String,
    pub(crate) country_code: String,
}

/// The part of an account that its owner sees.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Profile {
    pub(crate) user_id: UserId,
    /// In lower case.
    pub(crate) email: String,
    pub(crate) display_name: String,
    /// E.164.
    pub(crate) phone: Option<String>,
    pub(crate) address: Option<Address>,
    pub(crate) role: Role,
    pub(crate) created: Timestamp,
    pub(crate) updated: Timestamp,
}

/// The command that created an account.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Origin {
    pub(crate) request_id: RequestId,
    /// Of the command without its password, which is checked against the hash.
    pub(crate) fingerprint: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Account {
    pub(crate) profile: Profile,
    pub(crate) password_hash: PasswordHash,
    /// `None` for an operator's account.
    pub(crate) origin: Option<Origin>,
}

/// A request for an account.
#[derive(Clone, Debug)]
pub(crate) struct Registration {
    pub(crate) request_id: RequestId,
    pub(crate) email: String,
    pub(crate) password: Password,
    pub(crate) display_name: String,
}

/// The credentials of a log-in.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    pub(crate) email: String,
    pub(crate) password: Password,
}

/// A request for another password.
#[derive(Clone, Debug)]
pub(crate) struct PasswordUpdate {
    pub(crate) current: Password,
    pub(crate) new: Password,
}

/// A profile update: `None` leaves a field as it is, `Some(None)` clears it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct ProfileChange {
    pub(crate) display_name: Option<String>,
    pub(crate) phone: Option<Option<String>>,
    pub(crate) address: Option<Option<Address>>,
    /// The account's e-mail as the caller knows it; it must be equal, since it cannot be changed here.
    pub(crate) known_email: Option<String>,
}

impl ProfileChange {
    /// The fields to set, by their names in the contract.
    pub(crate) fn fields(&self) -> Vec<&'static str> {
        let all = [
            ("display_name", self.display_name.is_some()),
            ("phone", self.phone.is_some()),
            ("address", self.address.is_some()),
        ];
        all.into_iter().filter(|(_, is_set)| *is_set).map(|(name, _)| name).collect()
    }
}
