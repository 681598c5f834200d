//! `ordermesh events`: the stored trace events of a running system, oldest first, and with `--follow` new ones as they
//! are stored.
//!
//! # Layout
//! - here: the filter and the time window
//! - `session`: calls as the operator, beyond an access token's lifetime; `follower`: a stream that is resumed however
//!   it ends
//! - `print`: one line per event

mod follower;
mod print;
mod session;

use std::collections::HashSet;
use std::time::Duration;

use chassis::settings::duration;
use clap::Args;
use contracts::common::v1::EventType;
use contracts::data::v1::{EventStatus, ListTraceEventsRequest, TraceEvent, WatchTraceEventsRequest};
use kernel::{Clock, SystemClock};

use crate::error::Error;
use crate::events::follower::Follower;
use crate::events::print::Printer;
use crate::events::session::Session;
use crate::json::Format;
use crate::out;
use crate::system::{Location, Retries, System};
use crate::text;
use crate::up::Signals;

const PAGE_SIZE: i32 = 500;

/// Which events to print.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Continue with new events as they are stored, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    filter: Filter,
    /// How far back: ms, s, m, h or d [default: 1h; with --order, --user or --trace all stored events]
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    since: Option<Duration>,
    /// Maximum number of past events to print: the newest ones
    #[arg(long, default_value_t = 10_000, value_parser = chassis::settings::count, value_name = "COUNT")]
    limit: usize,
    /// Output format
    #[arg(long, short, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    output: Format,
    #[command(flatten)]
    location: Location,
}

/// The filter of events.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Only of this type, for example user_login; may be given several times
    #[arg(long = "type", value_parser = event_type, value_name = "TYPE")]
    types: Vec<EventType>,
    /// Only with this status: success, failed
    #[arg(long, value_parser = event_status, value_name = "STATUS")]
    status: Option<EventStatus>,
    /// Only of this order
    #[arg(long, value_name = "ID")]
    order: Option<String>,
    /// Only of this user
    #[arg(long, value_name = "ID")]
    user: Option<String>,
    /// Only of this trace
    #[arg(long, value_name = "ID")]
    trace: Option<String>,
    /// Only of this service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
}

impl Filter {
    /// A request has one type: several types are filtered on the client.
    fn only_type(&self) -> i32 {
        match self.types[..] {
            [only] => only.into(),
            _ => 0,
        }
    }

    fn fits(&self, event: &TraceEvent) -> bool {
        self.types.is_empty() || self.types.iter().any(|wanted| i32::from(*wanted) == event.r#type)
    }

    fn list(&self, start_time: Option<prost_types::Timestamp>, page_token: String) -> ListTraceEventsRequest {
        ListTraceEventsRequest {
            r#type: self.only_type(),
            status: self.status.unwrap_or_default().into(),
            service: self.service.clone().unwrap_or_default(),
            order_id: self.order.clone().unwrap_or_default(),
            user_id: self.user.clone().unwrap_or_default(),
            trace_id: self.trace.clone().unwrap_or_default(),
            start_time,
            end_time: None,
            page_size: PAGE_SIZE,
            page_token,
        }
    }

    fn watch(&self, after_cursor: String) -> WatchTraceEventsRequest {
        let ListTraceEventsRequest { r#type, status, service, order_id, user_id, trace_id, .. } =
            self.list(None, String::new());
        WatchTraceEventsRequest { r#type, status, service, order_id, user_id, trace_id, after_cursor }
    }
}

/// Parses an event type. The list is the contract's own, so that new types are known here.
fn event_type(word: &str) -> Result<EventType, String> {
    let all = (1..).map_while(|number| EventType::try_from(number).ok());
    let words = || all.clone().map(|known| text::event_type(known.into()));
    all.clone()
        .find(|known| text::event_type((*known).into()) == word)
        .ok_or_else(|| format!("one of {}", words().collect::<Vec<_>>().join(", ")))
}

fn event_status(word: &str) -> Result<EventStatus, String> {
    match word {
        "success" => Ok(EventStatus::Success),
        "failed" => Ok(EventStatus::Failed),
        _ => Err("one of success, failed".to_owned()),
    }
}

/// Prints the events; with `--follow` until a signal.
///
/// # Errors
/// There is no system; the Data Service rejects the filter; the stream cannot be resumed.
pub(crate) async fn run(options: Options) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    tokio::select! {
        result = print_all(options) => result,
        () = signals.next() => Ok(()),
    }
}

async fn print_all(options: Options) -> Result<(), Error> {
    let Options { follow, filter, since, limit, output, location } = options;
    let session = Session::open(System::find(&location, Retries::On).await?).await?;
    let printer = Printer::new(output);
    let start = since.map(|since| chassis::to_proto::timestamp(SystemClock.now().minus(since)));
    if !follow {
        return window(&session, &filter, start, limit).await?.iter().try_for_each(|event| printer.print(event));
    }
    // Started before the window is read: events stored in between are in both, later ones in the stream.
    let mut follower = Follower::begin(session, filter.clone()).await?;
    let mut printed = HashSet::new();
    for event in window(follower.session(), &filter, start, limit).await? {
        printer.print(&event)?;
        printed.insert(event.event_id);
    }
    loop {
        let event = follower.next().await?;
        if filter.fits(&event) && !printed.remove(&event.event_id) {
            printer.print(&event)?;
        }
    }
}

/// The newest events since a time, oldest first.
async fn window(
    session: &Session,
    filter: &Filter,
    start: Option<prost_types::Timestamp>,
    limit: usize,
) -> Result<Vec<TraceEvent>, Error> {
    let (mut events, mut page_token) = (Vec::new(), String::new());
    loop {
        let page = session.list(filter.list(start, page_token)).await?;
        events.extend(page.events.into_iter().filter(|event| filter.fits(event)));
        page_token = page.next_page_token;
        let is_cut = events.len() > limit || (events.len() == limit && !page_token.is_empty());
        if is_cut {
            out::complain(format_args!(
                "older events are omitted: narrow the window with --since, or raise --limit {limit}"
            ));
            events.truncate(limit);
        }
        if is_cut || page_token.is_empty() {
            events.reverse();
            return Ok(events);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_type_of_the_contract_is_accepted_and_an_error_lists_them() {
        assert_eq!(event_type("user_login"), Ok(EventType::UserLogin));
        assert_eq!(event_type("data_lookup"), Ok(EventType::DataLookup));
        for wrong in ["", "unspecified", "login", "USER_LOGIN"] {
            let message = event_type(wrong).expect_err(wrong);
            assert!(message.contains("user_login, order_creation") && !message.contains("unspecified"), "{message}");
        }
    }

    #[test]
    fn one_type_is_filtered_by_the_server_and_several_by_the_client() {
        let event = |kind: EventType| TraceEvent { r#type: kind.into(), ..TraceEvent::default() };
        let filter = |types: &[EventType]| Filter { types: types.to_vec(), ..Filter::default() };
        let (login, lookup, creation) = (EventType::UserLogin, EventType::DataLookup, EventType::OrderCreation);
        assert_eq!(filter(&[]).only_type(), 0);
        assert!(filter(&[]).fits(&event(lookup)));
        assert_eq!(filter(&[login]).only_type(), i32::from(login));
        let two = filter(&[login, creation]);
        assert_eq!(two.only_type(), 0);
        assert!(two.fits(&event(login)) && two.fits(&event(creation)) && !two.fits(&event(lookup)));
    }

    #[test]
    fn a_list_and_a_stream_have_the_same_filter() {
        let text = |text: &str| Some(text.to_owned());
        let filter = Filter {
            types: vec![EventType::UserLogin],
            status: Some(EventStatus::Failed),
            order: text("o"),
            user: text("u"),
            trace: text("t"),
            service: text("s"),
        };
        let (list, watch) = (filter.list(None, String::new()), filter.watch("c".into()));
        assert_eq!((list.r#type, list.status), (watch.r#type, watch.status));
        let of_list = [list.service, list.order_id, list.user_id, list.trace_id];
        assert_eq!(of_list, ["s", "o", "u", "t"]);
        assert_eq!([watch.service, watch.order_id, watch.user_id, watch.trace_id], of_list);
        assert_eq!((watch.after_cursor.as_str(), list.page_size), ("c", PAGE_SIZE));
    }
}
