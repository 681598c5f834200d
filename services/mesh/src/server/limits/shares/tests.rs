use super::*;
use crate::server::limits::caller_key::CallerKey;
use crate::server::limits::usage::UsageTable;
use uuid::Uuid;

/// A limit, and its callers.
struct World {
    shares: Arc<Shares>,
    table: Arc<UsageTable>,
}

impl World {
    fn new(limit: usize, reserved: usize) -> Self {
        Self { shares: Shares::new(Resource::Calls, limit, reserved), table: Arc::default() }
    }

    fn address(&self, last: u8) -> Holder {
        Holder::address(self.table.of(&CallerKey::Address([192, 0, 2, last].into())))
    }

    fn user(&self, number: u128, at: u8) -> Holder {
        let address = self.table.of(&CallerKey::Address([192, 0, 2, at].into()));
        Holder::user(self.table.of(&CallerKey::User(Uuid::from_u128(number))), Some(address))
    }

    fn take(&self, holder: Holder) -> Result<Share, Full> {
        self.shares.take(holder)
    }

    /// As many as the caller gets.
    fn all_of(&self, holder: &Holder) -> Vec<Share> {
        std::iter::from_fn(|| self.take(holder.clone()).ok()).collect()
    }
}

#[test]
fn one_caller_gets_half_two_get_a_third_each_and_a_new_caller_finds_some() {
    let world = World::new(120, 0);
    let first = world.all_of(&world.address(1));
    assert_eq!((first.len(), world.take(world.address(1)).expect_err("over its share")), (60, Full::Share));
    let second = world.all_of(&world.address(2));
    assert_eq!((second.len(), world.shares.used()), (30, 90));
    assert!(
        world.shares.is_beyond_share(&world.address(2), 1) && !world.shares.is_beyond_share(&world.address(3), 100)
    );
    let arrival = world.all_of(&world.address(3));
    assert_eq!(arrival.len(), 15);
    drop((first, arrival));
    assert_eq!(world.all_of(&world.address(2)).len(), 30, "more is free, and it may have half");
    drop(second);
    assert_eq!(world.shares.used(), 0);
    assert!(world.address(1).usages().all(|usage| usage.held(Resource::Calls) == 0));
}

#[test]
fn a_user_is_counted_by_account_at_any_address_and_by_address_with_any_account() {
    let world = World::new(120, 0);
    let first = world.all_of(&world.user(1, 1));
    assert_eq!(first.len(), 60);
    assert_eq!(world.take(world.user(1, 2)).expect_err("the same account"), Full::Share);
    assert_eq!(world.take(world.user(2, 1)).expect_err("the same address"), Full::Share);
    assert_eq!(world.take(world.address(1)).expect_err("an anonymous caller at the same address"), Full::Share);
    assert_eq!(world.all_of(&world.user(2, 2)).len(), 30, "another user at another address");
}

#[test]
fn mesh_services_have_no_share_limit_and_a_reserve() {
    let world = World::new(20, 4);
    let anonymous_clients: Vec<Share> =
        (0..16).map(|last| world.take(world.address(last)).expect("one each")).collect();
    assert_eq!(world.take(world.address(99)).expect_err("none is left for other callers"), Full::All);
    let services = world.all_of(&Holder::PLATFORM);
    assert_eq!((services.len(), world.take(Holder::PLATFORM).expect_err("all are taken")), (4, Full::All));
    drop(anonymous_clients);
    assert_eq!(world.all_of(&Holder::PLATFORM).len(), 16, "all of them");
}

#[test]
fn a_single_permit_is_available_to_any_caller() {
    let world = World::new(1, 0);
    let held = world.take(world.address(1)).expect("free");
    assert_eq!(world.take(world.address(2)).expect_err("taken"), Full::All);
    drop(held);
    world.take(world.address(2)).expect("free again");
}
