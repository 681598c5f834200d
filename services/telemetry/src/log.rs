//! How a log line looks: JSON for machines, a short line for a person at a terminal. Each has the ids of
//! the span that it was written in, so that a line leads to its trace.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use opentelemetry::trace::TraceContextExt;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::registry::LookupSpan;

use crate::context::TraceParent;

/// The form of the lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// One JSON object a line.
    Json,
    /// For a terminal.
    Pretty,
}

pub(crate) struct Lines {
    pub(crate) form: Form,
    pub(crate) service: String,
    pub(crate) instance: String,
}

#[derive(Default)]
struct Fields {
    message: String,
    others: BTreeMap<&'static str, serde_json::Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: serde_json::Value) {
        if field.name() == "message" {
            self.message = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
        } else {
            self.others.insert(field.name(), value);
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let place = ctx.lookup_current().and_then(|span| {
            let id = span.id();
            let context =
                tracing::dispatcher::get_default(|dispatch| tracing_opentelemetry::get_otel_context(&id, dispatch));
            context.map(|context| TraceParent::of(context.span().span_context()))
        });
        let meta = event.metadata();
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        match self.form {
            Form::Json => {
                let mut line = serde_json::Map::new();
                line.insert("time".into(), time.into());
                line.insert("level".into(), meta.level().as_str().into());
                line.insert("service".into(), self.service.as_str().into());
                line.insert("instance".into(), self.instance.as_str().into());
                if let Some(place) = place {
                    line.insert("trace_id".into(), place.trace_id().into());
                    line.insert("span_id".into(), place.span_id().into());
                }
                line.insert("message".into(), fields.message.into());
                line.insert("target".into(), meta.target().into());
                line.extend(fields.others.into_iter().map(|(name, value)| (name.to_owned(), value)));
                writeln!(writer, "{}", serde_json::Value::Object(line))
            }
            Form::Pretty => {
                let mut facts = String::new();
                for (name, value) in &fields.others {
                    match value.as_str() {
                        Some(text) => write!(facts, " {name}={text}")?,
                        None => write!(facts, " {name}={value}")?,
                    }
                }
                if let Some(place) = place {
                    write!(facts, " trace_id={} span_id={}", place.trace_id(), place.span_id())?;
                }
                let clock = time.get(11..19).unwrap_or(&time);
                writeln!(writer, "{clock} {:5} {:<9} {}{facts}", meta.level(), self.instance, fields.message)
            }
        }
    }
}
