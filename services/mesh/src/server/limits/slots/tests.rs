use super::*;

fn address(last: u8) -> Option<CallerKey> {
    Some(CallerKey::Address([192, 0, 2, last].into()))
}

fn is_evicted(slot: &Slot) -> bool {
    slot.evicted().is_cancelled()
}

fn evicted_of(slots: &[Slot]) -> Vec<usize> {
    (0..slots.len()).filter(|at| is_evicted(&slots[*at])).collect()
}

async fn take_in_turn(slots: &Arc<Slots>, last: u8, count: usize) -> Vec<Slot> {
    let mut taken = vec![];
    for _ in 0..count {
        taken.push(slots.take(address(last)).expect("a slot"));
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    taken
}

#[tokio::test(start_paused = true)]
async fn the_idlest_slot_of_the_largest_holder_is_evicted_for_a_new_caller() {
    let slots = Slots::new(6);
    let few = take_in_turn(&slots, 1, 2).await;
    let many = take_in_turn(&slots, 2, 4).await;
    // The first is in use, and the third was: the second is the idlest.
    many[0].begin_use();
    many[2].begin_use();
    many[2].end_use();
    let new = slots.take(address(3)).expect("a slot");
    assert_eq!((evicted_of(&few), evicted_of(&many), is_evicted(&new)), (vec![], vec![1], false));
    assert_eq!(slots.used(), 7, "until the evicted one is released");
    drop(many);
    assert_eq!(slots.used(), 3);
}

#[tokio::test(start_paused = true)]
async fn when_all_slots_are_in_use_one_is_evicted_for_a_caller_with_fewer() {
    let slots = Slots::new(4);
    let many = take_in_turn(&slots, 1, 4).await;
    many.iter().for_each(Slot::begin_use);
    let _new = slots.take(address(2)).expect("a slot");
    assert_eq!(evicted_of(&many), [0]);
}

#[tokio::test(start_paused = true)]
async fn the_largest_holder_gets_only_an_idle_slot_of_its_own() {
    let slots = Slots::new(4);
    let few = take_in_turn(&slots, 1, 1).await;
    let many = take_in_turn(&slots, 2, 3).await;
    assert!(slots.take(address(2)).is_none(), "none of its own has been idle long enough");
    tokio::time::advance(IDLE).await;
    many[0].begin_use();
    let _more = slots.take(address(2)).expect("its own slot");
    assert_eq!((evicted_of(&few), evicted_of(&many)), (vec![], vec![1]));
}

#[tokio::test(start_paused = true)]
async fn between_callers_with_one_slot_each_only_an_idle_slot_is_evicted() {
    let slots = Slots::new(3);
    let mut taken = vec![];
    for last in 1..=3 {
        taken.extend(take_in_turn(&slots, last, 1).await);
    }
    assert!(slots.take(address(4)).is_none());
    tokio::time::advance(IDLE).await;
    let _fourth = slots.take(address(4)).expect("the idlest slot");
    assert_eq!(evicted_of(&taken), [0]);
}

#[tokio::test(start_paused = true)]
async fn mesh_services_are_never_evicted_and_their_slots_count_for_no_caller() {
    let slots = Slots::new(3);
    let anonymous_clients = take_in_turn(&slots, 1, 2).await;
    let service = slots.take(address(1)).expect("a slot");
    service.never_evict();
    let _second = slots.take(None).expect("an evicted slot");
    let _third = slots.take(None).expect("an evicted slot");
    assert_eq!((evicted_of(&anonymous_clients), is_evicted(&service)), (vec![0, 1], false));
    drop(anonymous_clients);
    assert!(slots.take(address(1)).is_none(), "none that may be evicted is left");
    assert!(slots.table().held_by_caller.is_empty());
}

#[tokio::test(start_paused = true)]
async fn evictions_exceed_the_limit_by_a_bounded_number() {
    let slots = Slots::new(100);
    let many = take_in_turn(&slots, 1, 100).await;
    let new_slots: Vec<Slot> = (2..).map_while(|last| slots.take(address(last))).collect();
    assert_eq!(
        (new_slots.len(), evicted_of(&many).len(), slots.used()),
        (MAX_EVICTING, MAX_EVICTING, 100 + MAX_EVICTING)
    );
    let services: Vec<Slot> = std::iter::from_fn(|| slots.take(None)).collect();
    assert_eq!(services.len(), MAX_EVICTING, "mesh services still get some");
    drop(many);
    assert_eq!(slots.used(), 2 * MAX_EVICTING);
}

#[tokio::test(start_paused = true)]
async fn repeated_requests_of_one_new_caller_leave_evictions_for_others() {
    let slots = Slots::new(100);
    let many = take_in_turn(&slots, 1, 100).await;
    tokio::time::advance(IDLE).await;
    let own: Vec<Slot> = std::iter::from_fn(|| slots.take(address(1))).collect();
    assert_eq!(own.len(), 1, "the largest holder replaces its slots one by one");
    let other: Vec<Slot> = std::iter::from_fn(|| slots.take(address(2))).collect();
    assert_eq!(other.len(), MAX_EVICTING_FOR_ONE);
    assert!(slots.take(address(3)).is_some());
    let gone = evicted_of(&many);
    drop(many.into_iter().enumerate().filter(|(at, _)| gone.contains(at)).collect::<Vec<_>>());
    assert!(slots.take(address(2)).is_some(), "the evictions are complete");
}
