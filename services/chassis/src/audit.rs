//! Audit: the actor of a change. The event of an audited call names the actor; the service adds what changed.

use std::sync::Arc;

use mesh::{Caller, Role};
use telemetry::{Disposition, Ended, EventSink, Kind, Operation, Parent, TraceEvent};
use tonic::Extensions;

/// The type of the events.
pub const EVENT_TYPE: &str = "audit";
/// The user id or the service's name.
const ACTOR_ID: &str = "actor.id";
/// The actor's role: `customer`, `operator`, `service`, `anonymous`, or `command` for a command of the program.
const ACTOR_ROLE: &str = "actor.role";

/// The operation of an audited call, with its actor.
pub fn operation(extensions: &Extensions) -> Operation {
    let operation = mesh::operation(extensions);
    match mesh::caller(extensions) {
        Caller::User { user_id, role, .. } => {
            operation.set(ACTOR_ID, user_id.to_string());
            operation.set(
                ACTOR_ROLE,
                match role {
                    Role::Customer => "customer",
                    Role::Operator => "operator",
                },
            );
        }
        Caller::Service { name } => {
            operation.set(ACTOR_ID, name);
            operation.set(ACTOR_ROLE, "service");
        }
        Caller::Anonymous => operation.set(ACTOR_ROLE, "anonymous"),
    }
    operation
}

/// The operation of a command that runs without a call, for example `operator.create`.
pub fn of_command(name: &'static str, events: Arc<dyn EventSink>) -> Operation {
    let operation = Operation::open(Kind::Internal, name, Parent::Root, Some(EVENT_TYPE), Some(events));
    operation.set(ACTOR_ROLE, "command");
    operation
}

/// The sink of a command that exits when its transaction has committed: its events are in the outbox, and a running
/// instance sends them.
#[derive(Clone, Copy, Debug)]
pub struct CommandSink(
    /// The service whose database the command writes.
    pub &'static str,
);

impl EventSink for CommandSink {
    fn unclaimed(&self, _ended: Ended) -> Disposition {
        Disposition::NoEvent
    }
    fn put(&self, _event: TraceEvent) {}
    fn origin(&self) -> (&str, &str) {
        (self.0, "command")
    }
}
