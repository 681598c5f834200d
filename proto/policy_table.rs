//! Reads the `(mesh.v1.policy)` option of every rpc, validates it, and renders the table that the mesh reads.
//!
//! Used twice: by build.rs, where a broken rule fails the build, and by the tests of this package, which verify that it does.
//! Depends only on descriptors, not on the generated code.

use std::fmt;

use prost_reflect::prost_types::method_options::IdempotencyLevel;
use prost_reflect::{
    DescriptorPool, DynamicMessage, ExtensionDescriptor, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor,
    ReflectMessage, Value,
};

/// The full name of the methods' option.
const OPTION: &str = "mesh.v1.policy";
/// The full name of the fields' option.
const LIMIT: &str = "common.v1.limit";
/// The maximum nesting depth of a request's messages.
const MAX_DEPTH: usize = 8;

/// A rule for the policy of an rpc.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rule {
    /// Every rpc has a policy.
    NoPolicy,
    /// `event` is not EVENT_TYPE_UNSPECIFIED.
    EventUnspecified,
    /// Every rpc has an event, or a reason for having none.
    NoEventAndNoReason,
    /// An rpc with an event has no reason for having none.
    EventAndReason,
    /// ACCESS_UNSPECIFIED must not admit callers by accident.
    AccessUnspecified,
    /// At least one kind of caller is permitted.
    EmptyAllow,
    /// Services are permitted by name.
    ServiceWithoutCallers,
    /// `callers` has no effect without ACCESS_SERVICE.
    CallersWithoutService,
    /// Every unary call has a deadline.
    NoTimeout,
    /// A stream lasts until its token expires: a timeout on it would not be enforced.
    TimeoutOnStream,
    /// A request is one message: the mesh rejects any further one.
    StreamingRequest,
    /// A call that the mesh retries must not take effect twice.
    NotIdempotent,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPolicy => "has no option (mesh.v1.policy)",
            Self::EventUnspecified => "sets `event` to EVENT_TYPE_UNSPECIFIED; if it has no event, set `no_event` to the reason",
            Self::NoEventAndNoReason => "has neither `event` nor `no_event: \"reason\"`",
            Self::EventAndReason => "has both `event` and `no_event`",
            Self::AccessUnspecified => "has ACCESS_UNSPECIFIED in `allow`",
            Self::EmptyAllow => "has an empty `allow`: it could not be called",
            Self::ServiceWithoutCallers => "allows ACCESS_SERVICE without naming `callers`",
            Self::CallersWithoutService => "names `callers` without allowing ACCESS_SERVICE",
            Self::NoTimeout => "has no `timeout` above zero, which every unary call needs",
            Self::TimeoutOnStream => "has a `timeout` although it streams; a stream sets `timeout: {seconds: 0}`",
            Self::StreamingRequest => "streams its requests, and the mesh accepts one message for each call",
            Self::NotIdempotent => {
                "is IDEMPOTENT, but its request has no field `request_id` and it does not set `naturally_idempotent: true`"
            }
        })
    }
}

/// Why the table cannot be built.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum TableError {
    /// The descriptors have no `mesh.v1.policy`.
    NoOption,
    /// An option that does not have the structure of `mesh.v1.Policy` that this file expects.
    Shape {
        /// For example `order.v1.OrderService/CreateOrder`.
        rpc: String,
        /// The field.
        field: &'static str,
    },
    /// An rpc breaks a rule.
    Broken {
        /// For example `order.v1.OrderService/CreateOrder`.
        rpc: String,
        /// The rule.
        rule: Rule,
    },
    /// A request has a repeated field without a limit, or one whose elements cannot be counted.
    Unlimited {
        /// For example `order.v1.OrderService/CreateOrder`.
        rpc: String,
        /// The field.
        field: String,
    },
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoOption => write!(f, "the contract does not define the option ({OPTION})"),
            Self::Shape { rpc, field } => write!(f, "{rpc}: `{field}` of its policy cannot be read"),
            Self::Broken { rpc, rule } => write!(f, "{rpc} {rule}"),
            Self::Unlimited { rpc, field } => {
                write!(
                    f,
                    "{rpc}: `{field}` of its request needs ({LIMIT}) with max_items above zero, as every repeated field does; its elements must be strings, bytes or messages"
                )
            }
        }
    }
}

impl std::error::Error for TableError {}

/// The policy of one rpc, as it will be rendered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Row {
    /// The HTTP/2 `:path`.
    pub(crate) path: String,
    /// For example `order_creation`.
    pub(crate) event: Option<String>,
    /// Why it has no event; empty when it has one.
    pub(crate) no_event: String,
    /// Variants of `mesh::Access`.
    pub(crate) allow: Vec<&'static str>,
    /// Names of services.
    pub(crate) callers: Vec<String>,
    /// Seconds and nanoseconds; `None` for streams.
    pub(crate) timeout: Option<(u64, u32)>,
    /// A variant of `mesh::Idempotency`.
    pub(crate) idempotency: &'static str,
    /// Whether the response is a stream.
    pub(crate) streaming: bool,
    /// The maximum request size, if the method has its own limit.
    pub(crate) max_message_bytes: Option<u64>,
    /// The repeated fields of its request.
    pub(crate) limits: Vec<LimitRow>,
    /// Whether a traffic policy cannot change it.
    pub(crate) infrastructure: bool,
}

/// The maximum number of elements of a repeated field.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LimitRow {
    /// The numbers of the fields that lead to it, then its own.
    pub(crate) path: Vec<u32>,
    /// The same path by names.
    pub(crate) field: String,
    /// The maximum number of elements.
    pub(crate) max_items: u64,
    /// The violation's reason.
    pub(crate) reason: String,
}

/// The policies of all rpcs of all services, sorted by path.
///
/// # Errors
/// The first rpc that breaks a rule.
pub(crate) fn rows(pool: &DescriptorPool) -> Result<Vec<Row>, TableError> {
    let option = pool.get_extension_by_name(OPTION).ok_or(TableError::NoOption)?;
    let mut rows = Vec::new();
    for method in pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
        let options = method.options();
        if !options.has_extension(&option) {
            return Err(broken(&method, Rule::NoPolicy));
        }
        let policy = options.get_extension(&option);
        let policy = policy.as_message().ok_or_else(|| shape(&method, "policy"))?;
        let mut row = row(&method, policy)?;
        let limit = pool.get_extension_by_name(LIMIT).ok_or(TableError::NoOption)?;
        limits(&method, &limit, &method.input(), &LimitRow::none(), &mut row.limits)?;
        rows.push(row);
    }
    rows.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(rows)
}

/// The table as a Rust expression of type `[::mesh::MethodPolicy; N]`.
pub(crate) fn render(rows: &[Row]) -> String {
    let rows: String = rows.iter().map(render_row).collect();
    format!("[\n{rows}]\n")
}

fn row(method: &MethodDescriptor, policy: &DynamicMessage) -> Result<Row, TableError> {
    if method.is_client_streaming() {
        return Err(broken(method, Rule::StreamingRequest));
    }
    let allow = allow(method, policy)?;
    let callers = callers(method, policy)?;
    match (allow.contains(&"Service"), callers.is_empty()) {
        (true, true) => return Err(broken(method, Rule::ServiceWithoutCallers)),
        (false, false) => return Err(broken(method, Rule::CallersWithoutService)),
        (true, false) | (false, true) => {}
    }
    let event = event(method, policy)?;
    let no_event = no_event(method, policy)?;
    match (&event, no_event.trim().is_empty()) {
        (None, true) => return Err(broken(method, Rule::NoEventAndNoReason)),
        (Some(_), false) => return Err(broken(method, Rule::EventAndReason)),
        (None, false) | (Some(_), true) => {}
    }
    Ok(Row {
        path: format!("/{}", name(method)),
        event,
        no_event,
        allow,
        callers,
        timeout: timeout(method, policy)?,
        idempotency: idempotency(method, policy)?,
        streaming: method.is_server_streaming(),
        max_message_bytes: max_message_bytes(method, policy)?,
        limits: vec![],
        infrastructure: infrastructure(method, policy)?,
    })
}

fn infrastructure(method: &MethodDescriptor, policy: &DynamicMessage) -> Result<bool, TableError> {
    let value = policy.get_field_by_name("infrastructure").and_then(|value| value.as_bool());
    value.ok_or_else(|| shape(method, "infrastructure"))
}

fn max_message_bytes(method: &MethodDescriptor, policy: &DynamicMessage) -> Result<Option<u64>, TableError> {
    let unreadable = || shape(method, "max_message_bytes");
    let bytes =
        policy.get_field_by_name("max_message_bytes").and_then(|value| value.as_i32()).ok_or_else(unreadable)?;
    let bytes = u64::try_from(bytes).map_err(|_| unreadable())?;
    Ok((bytes > 0).then_some(bytes))
}

impl LimitRow {
    /// The empty path: the request itself.
    fn none() -> Self {
        Self { path: vec![], field: String::new(), max_items: 0, reason: String::new() }
    }

    /// The row of a field within this row's message: with its own limit, else this row's.
    fn of(&self, field: &FieldDescriptor, limit: &ExtensionDescriptor) -> Option<Self> {
        let dot = if self.field.is_empty() { "" } else { "." };
        let mut row = Self {
            path: [self.path.as_slice(), &[field.number()]].concat(),
            field: format!("{}{dot}{}", self.field, field.name()),
            max_items: self.max_items,
            reason: self.reason.clone(),
        };
        let options = field.options();
        if options.has_extension(limit) {
            let value = options.get_extension(limit);
            let value = value.as_message()?;
            row.max_items = u64::try_from(value.get_field_by_name("max_items")?.as_i32()?).ok()?;
            let reason = value.get_field_by_name("reason")?.as_str()?.to_owned();
            row.reason = if reason.is_empty() { "INVALID_LENGTH".to_owned() } else { reason };
        }
        Some(row)
    }
}

/// Collects the repeated fields of a message and of its nested messages.
fn limits(
    method: &MethodDescriptor,
    limit: &ExtensionDescriptor,
    message: &MessageDescriptor,
    above: &LimitRow,
    found: &mut Vec<LimitRow>,
) -> Result<(), TableError> {
    for field in message.fields() {
        let unlimited = || TableError::Unlimited { rpc: name(method), field: field.full_name().to_owned() };
        let row = above.of(&field, limit).ok_or_else(unlimited)?;
        let kind = field.kind();
        let is_repeated = field.is_list() || field.is_map();
        if is_repeated {
            // Numbers are packed: their tag does not show the number of elements.
            let is_countable = matches!(kind, Kind::String | Kind::Bytes | Kind::Message(_));
            if row.max_items == 0 || !is_countable {
                return Err(unlimited());
            }
            found.push(row.clone());
        }
        if let Some(inner) = kind.as_message() {
            if row.path.len() >= MAX_DEPTH {
                return Err(unlimited());
            }
            // Fields within a repeated message need their own limits.
            let above = if is_repeated { LimitRow { max_items: 0, ..row } } else { row };
            limits(method, limit, inner, &above, found)?;
        }
    }
    Ok(())
}

fn event(method: &MethodDescriptor, policy: &DynamicMessage) -> Result<Option<String>, TableError> {
    let unreadable = || shape(method, "event");
    let field = policy.descriptor().get_field_by_name("event").ok_or_else(unreadable)?;
    if !policy.has_field(&field) {
        return Ok(None);
    }
    let number = policy.get_field(&field).as_enum_number().ok_or_else(unreadable)?;
    if number == 0 {
        return Err(broken(method, Rule::EventUnspecified));
    }
    let kind = field.kind();
    let value = kind.as_enum().and_then(|kind| kind.get_value(number)).ok_or_else(unreadable)?;
    let words = value.name().strip_prefix("EVENT_TYPE_").ok_or_else(unreadable)?;
    Ok(Some(words.to_ascii_lowercase()))
}

fn no_event(method: &MethodDescriptor, policy: &DynamicMessage) -> Result<String, TableError> {
    let unreadable = || shape(method, "no_event");
    let reason = policy.get_field_by_name("no_event").ok_or_else(unreadable)?;
    reason.as_str().map(str::to_owned).ok_or_else(unreadable)
}

fn allow(method: &MethodDescriptor, policy: &DynamicMessage) -> Result<Vec<&'static str>, TableError> {
    let unreadable = || shape(method, "allow");
    let values = policy.get_field_by_name("allow").ok_or_else(unreadable)?;
    let mut allow = Vec::new();
    for value in values.as_list().ok_or_else(unreadable)? {
        allow.push(match value.as_enum_number() {
            Some(0) => return Err(broken(method, Rule::AccessUnspecified)),
            Some(1) => "Public",
            Some(2) => "Customer",
            Some(3) => "Operator",
            Some(4) => "Service",
            Some(_) | None => return Err(unreadable()),
        });
    }
    if allow.is_empty() { Err(broken(method, Rule::EmptyAllow)) } else { Ok(allow) }
}

fn callers(method: &MethodDescriptor, policy: &DynamicMessage) -> Result<Vec<String>, TableError> {
    let unreadable = || shape(method, "callers");
    let values = policy.get_field_by_name("callers").ok_or_else(unreadable)?;
    let names = values.as_list().ok_or_else(unreadable)?;
    names.iter().map(|name| name.as_str().map(str::to_owned).ok_or_else(unreadable)).collect()
}

fn timeout(method: &MethodDescriptor, policy: &DynamicMessage) -> Result<Option<(u64, u32)>, TableError> {
    let unreadable = || shape(method, "timeout");
    let value = policy.get_field_by_name("timeout").ok_or_else(unreadable)?;
    let duration = value.as_message().ok_or_else(unreadable)?;
    let part = |name: &str| duration.get_field_by_name(name).ok_or_else(unreadable);
    let seconds = part("seconds")?.as_i64().ok_or_else(unreadable)?;
    let nanos = part("nanos")?.as_i32().ok_or_else(unreadable)?;
    let timeout = match (u64::try_from(seconds), u32::try_from(nanos)) {
        (Ok(0), Ok(0)) | (Err(_), _) | (_, Err(_)) => None,
        (Ok(seconds), Ok(nanos)) => Some((seconds, nanos)),
    };
    match (method.is_server_streaming(), timeout) {
        (false, None) => Err(broken(method, Rule::NoTimeout)),
        (true, Some(_)) => Err(broken(method, Rule::TimeoutOnStream)),
        (false, Some(_)) | (true, None) => Ok(timeout),
    }
}

fn idempotency(method: &MethodDescriptor, policy: &DynamicMessage) -> Result<&'static str, TableError> {
    let options = method.method_descriptor_proto().options.clone().unwrap_or_default();
    match options.idempotency_level() {
        IdempotencyLevel::IdempotencyUnknown => Ok("Unknown"),
        IdempotencyLevel::NoSideEffects => Ok("NoSideEffects"),
        IdempotencyLevel::Idempotent => {
            let natural = policy
                .get_field_by_name("naturally_idempotent")
                .and_then(|value| Value::as_bool(&value))
                .ok_or_else(|| shape(method, "naturally_idempotent"))?;
            let has_request_id = method.input().get_field_by_name("request_id").is_some();
            if natural || has_request_id { Ok("Idempotent") } else { Err(broken(method, Rule::NotIdempotent)) }
        }
    }
}

fn render_row(row: &Row) -> String {
    let Row {
        path,
        event,
        no_event,
        allow,
        callers,
        timeout,
        idempotency,
        streaming,
        max_message_bytes,
        limits,
        infrastructure,
    } = row;
    let allow: Vec<String> = allow.iter().map(|access| format!("::mesh::Access::{access}")).collect();
    let timeout = match timeout {
        Some((seconds, nanos)) => format!("Some(::std::time::Duration::new({seconds}, {nanos}))"),
        None => "None".to_owned(),
    };
    format!(
        "    ::mesh::MethodPolicy {{\n        path: {path:?},\n        event: {event:?},\n        no_event: {no_event:?},\n        allow: &[{allow}],\n        \
         callers: &{callers:?},\n        timeout: {timeout},\n        idempotency: ::mesh::Idempotency::{idempotency},\n        \
         streaming: {streaming},\n        max_message_bytes: {max_message_bytes:?},\n        limits: &[{limits}],\n        infrastructure: {infrastructure},\n    }},\n",
        allow = allow.join(", "),
        limits = limits.iter().map(render_limit).collect::<Vec<_>>().join(", "),
    )
}

fn render_limit(LimitRow { path, field, max_items, reason }: &LimitRow) -> String {
    format!("::mesh::FieldLimit {{ path: &{path:?}, field: {field:?}, max_items: {max_items}, reason: {reason:?} }}")
}

/// For example `order.v1.OrderService/CreateOrder`.
fn name(method: &MethodDescriptor) -> String {
    format!("{}/{}", method.parent_service().full_name(), method.name())
}

fn broken(method: &MethodDescriptor, rule: Rule) -> TableError {
    TableError::Broken { rpc: name(method), rule }
}

fn shape(method: &MethodDescriptor, field: &'static str) -> TableError {
    TableError::Shape { rpc: name(method), field }
}
