use super::*;
use crate::server::limits::usage::Resource;

#[test]
fn charged_bytes_are_returned() {
    let budget = Shares::new(Resource::Memory, 100, 0);
    let service = Arc::new(Account::new(budget.clone(), Holder::PLATFORM));
    service.take_for_request(60).expect("free");
    let response = service.take(40).expect("free");
    assert_eq!(service.take_for_request(1), Err(Full::All));
    service.give_back_request();
    assert_eq!((budget.used(), service.take_for_request(60)), (40, Ok(())));
    drop(response);
    drop(service);
    assert_eq!(budget.used(), 0);
}
