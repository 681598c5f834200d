use super::*;

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, last], 1))
}

#[test]
fn callers_are_the_same_on_every_connection_and_are_removed_with_their_last_reference() {
    let table = Arc::new(UsageTable::default());
    let (one, other) = (ConnectionCallers::new(table.clone()), ConnectionCallers::new(table.clone()));
    let (mut first, mut second) = (one.peer(address(1)), other.peer(address(1)));
    first.set_user(Uuid::from_u128(7));
    second.set_user(Uuid::from_u128(7));
    assert!(first.holder.usages().zip(second.holder.usages()).all(|(first, second)| std::ptr::eq(first, second)));
    assert_eq!(
        (first.holder.narrowest(), first.holder.usages().count()),
        (Some(CallerKey::User(Uuid::from_u128(7))), 2)
    );
    assert_eq!(table.by_key.lock().len(), 2);
    first.set_mesh_service();
    assert!(first.holder.is_mesh_service() && !second.holder.is_mesh_service());
    drop((first, second, one));
    assert_eq!(table.by_key.lock().len(), 2, "the other connection keeps its last callers");
    drop(other);
    assert!(table.by_key.lock().is_empty());
}

#[test]
fn behind_a_proxy_only_the_last_caller_of_a_connection_is_kept() {
    let table = Arc::new(UsageTable::default());
    let connection = ConnectionCallers::new(table.clone());
    for last in 1..=9 {
        connection.peer(address(last));
    }
    assert_eq!(table.by_key.lock().keys().cloned().collect::<Vec<_>>(), [CallerKey::of_address(address(9).ip())]);
}
