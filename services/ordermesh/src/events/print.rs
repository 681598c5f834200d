//! An event as a line of text or JSON.

use std::fmt::Write as _;
use std::io::IsTerminal;

use contracts::data::v1::{EventError, EventStatus, TraceEvent};

use crate::error::Error;
use crate::json::{self, Format};
use crate::out;
use crate::text::{self, millis, printable};

const RED: &str = "\x1b[31m";
const PLAIN: &str = "\x1b[0m";

pub(crate) struct Printer {
    format: Format,
    /// Whether failures are printed in red.
    in_colour: bool,
}

impl Printer {
    /// Coloured on a terminal, unless the environment has `NO_COLOR` (<https://no-color.org>).
    pub(crate) fn new(format: Format) -> Self {
        let is_wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { format, in_colour: is_wanted && std::io::stdout().is_terminal() }
    }

    /// Prints an event.
    ///
    /// # Errors
    /// The output cannot be written.
    pub(crate) fn print(&self, event: &TraceEvent) -> Result<(), Error> {
        out::line(self.line(event))
    }

    fn line(&self, event: &TraceEvent) -> String {
        match self.format {
            Format::Json => json::message("data.v1.TraceEvent", event),
            Format::Text if self.in_colour && event.status() == EventStatus::Failed => {
                format!("{RED}{}{PLAIN}", columns(event))
            }
            Format::Text => columns(event),
        }
    }
}

fn columns(event: &TraceEvent) -> String {
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { printable(text) };
    let mut line = format!(
        "{}  {:<18}  {:<7}  {:<7} {}  order {}",
        event.start_time.map_or_else(|| "-".to_owned(), |time| millis(&time)),
        text::event_type(event.r#type),
        text::event_status(event.status),
        printable(&event.service),
        printable(&event.operation),
        or_dash(&event.order_id),
    );
    // Writing to a String cannot fail.
    if let Some(EventError { r#type, reason, message }) = &event.error {
        let _ = write!(line, "  {} {}: {}", or_dash(r#type), or_dash(reason), or_dash(message));
    }
    if event.suppressed_count > 0 {
        let _ = write!(line, "  (and {} like it)", event.suppressed_count);
    }
    let _ = write!(line, "  trace {}", or_dash(&event.trace_id));
    line
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use contracts::common::v1::EventType;
    use prost::Message;
    use prost_types::{Duration, FileDescriptorSet};

    use super::*;

    fn event() -> TraceEvent {
        TraceEvent {
            event_id: "0190b5a0-7c3e-7a6b-9d1e-3f2a4b5c6d7e".into(),
            r#type: EventType::OrderCreation.into(),
            status: EventStatus::Failed.into(),
            service: "order".into(),
            instance: "order-1".into(),
            operation: "order.v1.OrderService/CreateOrder".into(),
            trace_id: "0af7651916cd43dd8448eb211c80319c".into(),
            span_id: "b7ad6b7169203331".into(),
            start_time: Some(prost_types::Timestamp { seconds: 1_772_445_600, nanos: 5_000 }),
            duration: Some(Duration { seconds: 1, nanos: 500_000_000 }),
            order_id: "0190b5a0-7c3e-7a6b-9d1e-000000000001".into(),
            user_id: "0190b5a0-7c3e-7a6b-9d1e-000000000002".into(),
            error: Some(EventError {
                r#type: "ValidationError".into(),
                reason: "UNKNOWN_SKU".into(),
                message: "unknown SKU: NO-SUCH-THING".into(),
            }),
            attributes: [("lines".to_owned(), "2".to_owned())].into(),
            suppressed_count: 3,
        }
    }

    fn printer(format: Format, in_colour: bool) -> Printer {
        Printer { format, in_colour }
    }

    #[test]
    fn a_line_has_time_type_service_and_error() {
        let line = printer(Format::Text, false).line(&event());
        assert_eq!(
            line,
            "2026-03-02T10:00:00.000Z  order_creation      failed   order   order.v1.OrderService/CreateOrder  \
             order 0190b5a0-7c3e-7a6b-9d1e-000000000001  ValidationError UNKNOWN_SKU: unknown SKU: NO-SUCH-THING  \
             (and 3 like it)  trace 0af7651916cd43dd8448eb211c80319c"
        );
        let success =
            TraceEvent { status: EventStatus::Success.into(), error: None, order_id: String::new(), ..event() };
        let line = printer(Format::Text, false).line(&TraceEvent { suppressed_count: 0, ..success });
        assert!(line.ends_with("CreateOrder  order -  trace 0af7651916cd43dd8448eb211c80319c"), "{line}");
    }

    #[test]
    fn only_failures_are_red_and_only_on_a_terminal() {
        let success = TraceEvent { status: EventStatus::Success.into(), ..event() };
        assert!(printer(Format::Text, true).line(&event()).starts_with(RED));
        assert!(printer(Format::Text, true).line(&event()).ends_with(PLAIN));
        for line in [
            printer(Format::Text, false).line(&event()),
            printer(Format::Text, true).line(&success),
            printer(Format::Json, true).line(&event()),
        ] {
            assert!(!line.contains('\x1b'), "{line}");
        }
    }

    #[test]
    fn control_characters_in_untrusted_texts_are_escaped() {
        let mut event = event();
        event.error = Some(EventError { message: "one\ntwo \x1b[2J".into(), ..EventError::default() });
        let line = printer(Format::Text, false).line(&event);
        assert!(line.contains(r"- -: one\ntwo \u{1b}[2J"), "{line}");
        assert_eq!(printer(Format::Json, false).line(&event).lines().count(), 1);
    }

    #[test]
    fn an_event_in_json_has_every_field_by_its_name_in_the_contract() {
        let files = FileDescriptorSet::decode(contracts::DESCRIPTORS).expect("descriptors").file;
        let names = |message: &str| -> BTreeSet<String> {
            let mut all = files.iter().filter(|file| file.package() == "data.v1").flat_map(|file| &file.message_type);
            let message = all.find(|candidate| candidate.name() == message).expect("a message of the contract");
            message.field.iter().map(|field| field.json_name().to_owned()).collect()
        };
        let json: serde_json::Value = serde_json::from_str(&printer(Format::Json, false).line(&event())).expect("JSON");
        let keys = |value: &serde_json::Value| value.as_object().expect("an object").keys().cloned().collect();
        let (all, of_error): (BTreeSet<String>, BTreeSet<String>) = (keys(&json), keys(&json["error"]));
        assert_eq!(all, names("TraceEvent"));
        assert_eq!(of_error, names("EventError"));
        assert_eq!(json["type"], "EVENT_TYPE_ORDER_CREATION");
        assert_eq!(json["status"], "EVENT_STATUS_FAILED");
        assert_eq!(json["startTime"], "2026-03-02T10:00:00.000005Z");
        assert_eq!(json["duration"], "1.500s");
        assert_eq!(json["attributes"]["lines"], "2");
    }

    #[test]
    fn unset_fields_are_omitted_from_json() {
        let event = TraceEvent {
            r#type: EventType::UserLogin.into(),
            status: EventStatus::Success.into(),
            ..Default::default()
        };
        let line = printer(Format::Json, false).line(&event);
        assert_eq!(line, r#"{"type":"EVENT_TYPE_USER_LOGIN","status":"EVENT_STATUS_SUCCESS"}"#);
    }
}
