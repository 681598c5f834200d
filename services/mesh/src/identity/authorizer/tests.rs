use super::*;
use crate::policy::METHOD;
use crate::status::reason_of;
use kernel::Timestamp;
use uuid::Uuid;

const fn method(path: &'static str, allow: &'static [Access], callers: &'static [&'static str]) -> MethodPolicy {
    MethodPolicy { path, allow, callers, ..METHOD }
}

const OPERATORS: MethodPolicy = method("/t.T/Operators", &[Access::Operator], &[]);
const SERVICES: MethodPolicy = method("/t.T/Services", &[Access::Service], &["order"]);

fn user(role: Role) -> Caller {
    Caller::User { user_id: Uuid::nil(), role, token_expires: Timestamp::from_micros(0), session_id: None }
}

fn service(name: &str) -> Caller {
    Caller::Service { name: name.to_owned() }
}

#[test]
fn the_table_decides() {
    #[rustfmt::skip]
    let table = [
        (OPERATORS, user(Role::Operator), None),
        (OPERATORS, user(Role::Customer), Some("ROLE_NOT_ALLOWED")),
        (OPERATORS, service("order"),       Some("CALLER_NOT_ALLOWED")),
        (OPERATORS, Caller::Anonymous,      Some("TOKEN_MISSING")),
        (SERVICES,  service("order"),       None),
        (SERVICES,  service("payment"),     Some("CALLER_NOT_ALLOWED")),
        (SERVICES,  user(Role::Operator), Some("ROLE_NOT_ALLOWED")),
        (SERVICES,  Caller::Anonymous,      Some("TOKEN_MISSING")),
    ];
    for (policy, caller, rejection) in table {
        let response = allowed(&policy, &caller).err().and_then(|status| reason_of(&status));
        assert_eq!(response.as_deref(), rejection, "{} by {caller:?}", policy.path);
    }
}

#[test]
fn a_bearer_token_is_read_whatever_the_schemes_case() {
    assert_eq!(bearer(b"Bearer a.b.c"), Some("a.b.c"));
    assert_eq!(bearer(b"bearer  a.b.c"), Some("a.b.c"));
    assert_eq!(bearer(b"Basic a.b.c"), None);
    assert_eq!(bearer(b"Bearer "), None);
    assert_eq!(bearer(b"a.b.c"), None);
}
