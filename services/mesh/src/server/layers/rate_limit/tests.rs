use super::*;
use crate::identity::caller::Role;
use crate::server::limits::usage::{ConnectionCallers, UsageTable};
use std::net::SocketAddr;
use uuid::Uuid;

#[test]
fn public_methods_count_by_address_and_others_by_account() {
    let address: SocketAddr = "192.0.2.7:4711".parse().expect("an address");
    let user = Caller::User {
        user_id: Uuid::from_u128(7),
        role: Role::Customer,
        token_expires: kernel::Timestamp::from_micros(0),
        session_id: None,
    };
    let mut request = Request::new(tonic::body::Body::empty());
    request.extensions_mut().insert(ConnectionCallers::new(Arc::new(UsageTable::default())).peer(address));
    request.extensions_mut().insert(user);
    assert_eq!(key_of(&request, true), CallerKey::Address(address.ip()));
    assert_eq!(key_of(&request, false), CallerKey::User(Uuid::from_u128(7)));
}
