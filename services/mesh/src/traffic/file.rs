//! The file of a traffic policy: YAML with the field names of the Gateway API's GRPCRoute; what GRPCRoute lacks is below
//! `ordermesh:`. Every rule of it is checked before one is taken.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use serde::Deserialize;
use serde_saphyr::{Location, Spanned};
use tonic::Code;

use crate::call::wire::RESERVED_PREFIX;
use crate::client::discovery::{Addresses, AddressesError};
use crate::policy::{Access, Idempotency, MethodPolicy, PolicyTable};
use crate::status::{CODES, code_name};
use crate::traffic::{Backend, ConditionalRule, Fault, Headers, Mirror, Rules, TrafficRule, duration};

/// A longer delay would only hold the caller's permits.
const MAX_DELAY: Duration = Duration::from_secs(60);
/// As percentages are.
const MAX_WEIGHT: u32 = 100;
/// Of a target's name: it becomes a label.
const MAX_NAME: usize = 63;
/// Of a text of the file, as much is quoted.
const MAX_QUOTED: usize = 300;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    /// Other targets of calls, by name: their addresses.
    #[serde(default)]
    targets: BTreeMap<String, Spanned<String>>,
    /// The first rule that matches a call applies.
    #[serde(default)]
    rules: Vec<Spanned<RuleText>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RuleText {
    matches: Vec<MatchText>,
    timeouts: Option<Timeouts>,
    #[serde(default)]
    backend_refs: Vec<Spanned<BackendRef>>,
    #[serde(default)]
    filters: Vec<Spanned<FilterText>>,
    ordermesh: Option<Extension>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct BackendRef {
    name: Spanned<String>,
    weight: Option<Spanned<u32>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct FilterText {
    r#type: FilterType,
    request_mirror: RequestMirror,
}

/// The filters of GRPCRoute that there are here.
#[derive(Deserialize)]
enum FilterType {
    RequestMirror,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RequestMirror {
    backend_ref: MirrorRef,
    percent: Option<Spanned<u8>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct MirrorRef {
    name: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct MatchText {
    method: MethodText,
    #[serde(default)]
    headers: Vec<HeaderText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct MethodText {
    service: Spanned<String>,
    method: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct HeaderText {
    name: Spanned<String>,
    value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Timeouts {
    request: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Extension {
    fault: Option<Spanned<FaultText>>,
    audit: Option<AuditText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct FaultText {
    percent: Spanned<u8>,
    delay: Option<Spanned<String>>,
    code: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct AuditText {
    callers: Vec<Spanned<String>>,
}

/// Why a file is rejected, with the position.
fn at(location: Location, why: impl std::fmt::Display) -> String {
    format!("line {}, column {}: {why}", location.line(), location.column())
}

fn of<T>(spanned: &Spanned<T>, why: impl std::fmt::Display) -> String {
    at(spanned.referenced, why)
}

/// The rules of a file.
///
/// # Errors
/// Why it is rejected, in one line with the position.
pub(crate) fn rules(text: &str, policies: PolicyTable, allow_faults: bool) -> Result<Rules, String> {
    let file: File = serde_saphyr::from_str(text).map_err(|error| yaml_error(&error))?;
    let targets = targets(&file.targets, policies)?;
    let mut rules = Rules { by_path: HashMap::new(), count: file.rules.len() };
    let mut earlier: HashMap<&'static str, Vec<(Headers, u64)>> = HashMap::new();
    for text in &file.rules {
        let (mut is_reached, mut shortens, mut mirrors) = (false, false, false);
        let backends = backends(text, &targets, policies)?;
        for matched in matches(text, policies)? {
            let Some(rule) = rule(text, &matched, &targets, policies, allow_faults)? else { continue };
            let rule = Arc::new(TrafficRule { backends: backends.clone(), ..rule });
            // One with fewer conditions matches every call that this one would.
            let of_method = earlier.entry(matched.policy.path).or_default();
            if let (Some((_, line)), false) = (of_method.first(), backends.is_empty()) {
                let name = matched.policy.name();
                return Err(of(
                    text,
                    format!("splits only a part of a service: the rule in line {line} matches {name} first"),
                ));
            }
            let covers = |headers: &Headers| headers.iter().all(|header| matched.headers.contains(header));
            let hidden_by = of_method.iter().find(|(headers, _)| covers(headers)).map(|(_, line)| *line);
            if let (Some(line), true) = (hidden_by, matched.is_named) {
                let why = format!("never applies to {}: the rule in line {line} matches first", matched.policy.name());
                return Err(of(text, why));
            }
            if hidden_by.is_some() {
                continue;
            }
            is_reached = true;
            shortens |= rule.timeout.is_some();
            mirrors |= rule.mirror.is_some();
            of_method.push((matched.headers.clone(), text.referenced.line()));
            let conditional = ConditionalRule { headers: matched.headers, rule };
            rules.by_path.entry(matched.policy.path).or_default().push(conditional);
        }
        if let (Some(timeouts), true, false) = (&text.value.timeouts, is_reached, shortens) {
            return Err(of(
                &timeouts.request,
                "a timeout may only be shortened: no method that this rule matches has a longer one",
            ));
        }
        if let (Some(filter), true, false) = (text.value.filters.first(), is_reached, mirrors) {
            return Err(of(
                filter,
                "no method that this rule matches can be mirrored: each has side effects or is a stream",
            ));
        }
        if !is_reached {
            return Err(of(text, "this rule never applies: earlier ones match first"));
        }
    }
    Ok(rules)
}

/// An error of a YAML file in one line, with its position.
pub fn yaml_error(error: &serde_saphyr::Error) -> String {
    // The library's advice is for programmers.
    let text = error.without_snippet().to_string().replace(", set DuplicateKeyPolicy in Options if acceptable", "");
    let line = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    // It may quote the file.
    let line: String = line
        .chars()
        .take(MAX_QUOTED)
        .flat_map(|letter| if letter.is_control() { letter.escape_default().collect() } else { vec![letter] })
        .collect();
    match error.location() {
        // The library's own text names the position too, in words of its own.
        Some(location) if !line.contains("line ") => at(location, line),
        Some(_) | None => line,
    }
}

/// A method that a rule matches.
struct Matched {
    policy: &'static MethodPolicy,
    headers: Headers,
    /// By itself, and not as one of its service's methods.
    is_named: bool,
}

fn matches(rule: &Spanned<RuleText>, policies: PolicyTable) -> Result<Vec<Matched>, String> {
    if rule.value.matches.is_empty() {
        return Err(of(rule, "the rule has no `matches`"));
    }
    let mut all = Vec::new();
    for text in &rule.value.matches {
        let headers = headers(&text.headers)?;
        let MethodText { service, method } = &text.method;
        let in_service: Vec<_> = policies.0.iter().filter(|policy| policy.service() == service.value).collect();
        if in_service.is_empty() {
            return Err(of(service, format!("no service is named {}", quoted(&service.value))));
        }
        let before = all.len();
        match method {
            Some(method) => {
                let is_it = |policy: &&&MethodPolicy| policy.name().ends_with(&format!("/{}", method.value));
                let Some(policy) = in_service.iter().find(is_it) else {
                    return Err(of(method, format!("{} has no method {}", service.value, quoted(&method.value))));
                };
                if policy.infrastructure {
                    return Err(of(method, format!("{} cannot be changed: the platform depends on it", policy.name())));
                }
                all.push(Matched { policy, headers, is_named: true });
            }
            None => all.extend(in_service.into_iter().filter(|policy| !policy.infrastructure).map(|policy| Matched {
                policy,
                headers: headers.clone(),
                is_named: false,
            })),
        }
        if all.len() == before {
            return Err(of(service, format!("{} cannot be changed: the platform depends on it", service.value)));
        }
    }
    Ok(all)
}

/// Texts of the file are quoted with control characters escaped: they are logged.
fn quoted(text: &str) -> String {
    format!("{:?}", text.chars().take(MAX_QUOTED).collect::<String>())
}

fn headers(texts: &[HeaderText]) -> Result<Headers, String> {
    let mut headers: Headers = Vec::new();
    for text in texts {
        let name = HeaderName::try_from(text.name.value.as_str());
        let name =
            name.map_err(|_| of(&text.name, format!("{} is not the name of a header", quoted(&text.name.value))))?;
        if name == http::header::AUTHORIZATION || name == http::header::COOKIE {
            return Err(of(&text.name, "a credential cannot be matched"));
        }
        if name.as_str().starts_with(RESERVED_PREFIX) {
            return Err(of(&text.name, format!("headers that begin with {RESERVED_PREFIX} are the mesh's own")));
        }
        if headers.iter().any(|(known, _)| *known == name) {
            return Err(of(&text.name, "a header cannot have two values"));
        }
        headers.push((name, text.value.clone()));
    }
    headers.sort_by(|a, b| a.0.as_str().cmp(b.0.as_str()));
    Ok(headers)
}

/// `None`: the rule changes nothing of this method of its service.
fn rule(
    text: &Spanned<RuleText>,
    matched: &Matched,
    targets: &BTreeMap<String, Addresses>,
    policies: PolicyTable,
    allow_faults: bool,
) -> Result<Option<TrafficRule>, String> {
    let RuleText { timeouts, ordermesh, backend_refs, filters, .. } = &text.value;
    let Matched { policy, headers, is_named } = matched;
    let fault = ordermesh.as_ref().and_then(|extension| extension.fault.as_ref());
    let audit = ordermesh.as_ref().and_then(|extension| extension.audit.as_ref());
    let changes_calls = timeouts.is_some() || fault.is_some() || !backend_refs.is_empty() || !filters.is_empty();
    if !changes_calls && audit.is_none() {
        let why = "the rule changes nothing: it has neither `timeouts` nor `backendRefs` nor `filters` nor \
                   `ordermesh: {fault, audit}`";
        return Err(of(text, why));
    }
    if let (Some(audit), false) = (audit, headers.is_empty()) {
        let why = "callers are audited of all calls: `audit` cannot have `headers`";
        return Err(audit.callers.first().map_or_else(|| of(text, why), |caller| of(caller, why)));
    }
    // Timeouts and faults are the clients', and only services are clients of this mesh.
    let is_called = policy.allow.iter().any(|access| matches!(access, Access::Service | Access::Public));
    if !is_called && audit.is_none() {
        let why = format!("never applies to {}: no service calls it", policy.name());
        return if *is_named { Err(of(text, why)) } else { Ok(None) };
    }
    let timeout = timeouts.as_ref().map(|timeouts| timeout(timeouts, policy, *is_named)).transpose()?.flatten();
    Ok(Some(TrafficRule {
        timeout: timeout.filter(|_| is_called),
        fault: fault.map(|text| self::fault(text, allow_faults)).transpose()?.filter(|_| is_called),
        backends: Vec::new(),
        mirror: mirror(filters, backend_refs, matched, targets)?.filter(|_| is_called),
        audited_callers: audit.map(|audit| callers(text, audit, policy, policies)).transpose()?,
    }))
}

/// The service of a method at the mesh, for example `payment`: the first part of its package.
fn target_of(policy: &MethodPolicy) -> &'static str {
    policy.name().split('.').next().unwrap_or_default()
}

fn targets(
    texts: &BTreeMap<String, Spanned<String>>,
    policies: PolicyTable,
) -> Result<BTreeMap<String, Addresses>, String> {
    let mut targets = BTreeMap::new();
    for (name, text) in texts {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(is_plain) {
            let why = format!("a target's name is 1 to {MAX_NAME} of a-z, 0-9 and -, not {}", quoted(name));
            return Err(of(text, why));
        }
        if policies.0.iter().any(|policy| target_of(policy) == name) {
            return Err(of(text, format!("{name} is a service: another target needs another name")));
        }
        let addresses = text.value.parse().map_err(|error: AddressesError| of(text, error))?;
        targets.insert(name.clone(), addresses);
    }
    Ok(targets)
}

/// The targets of a rule. Calls of one order must not be of two versions with different stores, or of two versions by turns: a
/// split is one of whole services.
fn backends(
    rule: &Spanned<RuleText>,
    targets: &BTreeMap<String, Addresses>,
    policies: PolicyTable,
) -> Result<Vec<Backend>, String> {
    let RuleText { matches, backend_refs, .. } = &rule.value;
    let (Some(first), Some(matched)) = (backend_refs.first(), matches.first()) else { return Ok(Vec::new()) };
    let is_named = |text: &&MatchText| text.method.method.is_some() || !text.headers.is_empty();
    if let Some(text) = matches.iter().find(is_named) {
        let why = "`backendRefs` split whole services: their rule has neither `method` nor `headers`";
        return Err(of(&text.method.service, why));
    }
    let service = matched.method.service.value.split('.').next().unwrap_or_default();
    let of_service = policies.0.iter().filter(|policy| target_of(policy) == service && !policy.infrastructure);
    for policy in of_service {
        if !matches.iter().any(|text| text.method.service.value == policy.service()) {
            let why = format!("`backendRefs` split whole services: {} is of {service} too", policy.service());
            return Err(of(&matched.method.service, why));
        }
    }
    if let Some(text) = matches.iter().find(|text| !text.method.service.value.starts_with(&format!("{service}."))) {
        return Err(of(&text.method.service, format!("a rule with `backendRefs` is of one service, here {service}")));
    }
    let mut backends: Vec<Backend> = Vec::new();
    for text in backend_refs {
        let name = &text.value.name;
        let addresses = if name.value == service { None } else { targets.get(&name.value).cloned() };
        if addresses.is_none() && name.value != service {
            return Err(of(name, format!("no target is named {}, and the service is {service}", quoted(&name.value))));
        }
        if backends.iter().any(|known| known.name == name.value) {
            return Err(of(name, format!("{} is named twice", name.value)));
        }
        let weight = text.value.weight.as_ref().map_or(1, |weight| weight.value);
        if let Some(text) = text.value.weight.as_ref().filter(|weight| weight.value > MAX_WEIGHT) {
            return Err(of(text, format!("a weight is 0 to {MAX_WEIGHT}")));
        }
        backends.push(Backend { name: name.value.clone(), weight, addresses });
    }
    if backends.iter().all(|backend| backend.weight == 0) {
        return Err(of(first, "all weights are 0: no call would be sent"));
    }
    Ok(backends)
}

/// Of a service's methods, those with a shorter or no timeout keep theirs; a method that is named must be shortened.
fn timeout(text: &Timeouts, policy: &MethodPolicy, is_named: bool) -> Result<Option<Duration>, String> {
    let request = &text.request;
    let timeout = duration::parse(&request.value).filter(|timeout| !timeout.is_zero());
    let timeout =
        timeout.ok_or_else(|| of(request, format!("{} is not a duration such as 500ms", quoted(&request.value))))?;
    match policy.timeout {
        Some(contract) if timeout < contract => Ok(Some(timeout)),
        _ if !is_named => Ok(None),
        Some(contract) => Err(of(
            request,
            format!("a timeout may only be shortened: that of {} is {}", policy.name(), duration::format(contract)),
        )),
        None => Err(of(request, format!("{} is a stream, and has no timeout", policy.name()))),
    }
}

/// Of a service's methods, those with side effects, and streams, are not mirrored; a method that is named must be mirrored.
fn mirror(
    filters: &[Spanned<FilterText>],
    backend_refs: &[Spanned<BackendRef>],
    matched: &Matched,
    targets: &BTreeMap<String, Addresses>,
) -> Result<Option<Mirror>, String> {
    let Some(filter) = filters.first() else { return Ok(None) };
    if let Some(second) = filters.get(1) {
        return Err(of(second, "a rule mirrors calls to one target"));
    }
    let FilterText { r#type: FilterType::RequestMirror, request_mirror } = &filter.value;
    let (name, policy) = (&request_mirror.backend_ref.name, matched.policy);
    if name.value == target_of(policy) {
        return Err(of(name, format!("{} would get each of these calls twice: name another target", name.value)));
    }
    let Some(addresses) = targets.get(&name.value) else {
        return Err(of(name, format!("no target is named {}", quoted(&name.value))));
    };
    if let Some(text) = backend_refs.iter().find(|text| text.value.name.value == name.value) {
        return Err(of(text, format!("{} would get some of these calls twice: it gets copies, too", name.value)));
    }
    let percent = request_mirror.percent.as_ref().map_or(100, |percent| percent.value);
    if let Some(text) = request_mirror.percent.as_ref().filter(|percent| percent.value > 100) {
        return Err(of(text, "percent is 0 to 100"));
    }
    let why = match policy.idempotency {
        Idempotency::Unknown | Idempotency::Idempotent => "has side effects",
        Idempotency::NoSideEffects if policy.streaming => "is a stream",
        Idempotency::NoSideEffects => {
            return Ok(Some(Mirror { name: name.value.clone(), addresses: addresses.clone(), percent }));
        }
    };
    if matched.is_named {
        Err(of(filter, format!("{} {why}, and cannot be mirrored", policy.name())))
    } else {
        Ok(None)
    }
}

fn fault(text: &Spanned<FaultText>, allow_faults: bool) -> Result<Fault, String> {
    let FaultText { percent, delay, code } = &text.value;
    if !allow_faults {
        return Err(of(text, "faults are not allowed: start the service with --allow-faults"));
    }
    if !(1..=100).contains(&percent.value) {
        return Err(of(percent, "percent is 1 to 100"));
    }
    let delay = match delay {
        None => None,
        Some(delay) => {
            let parsed = duration::parse(&delay.value).filter(|parsed| !parsed.is_zero() && *parsed <= MAX_DELAY);
            let why = || {
                of(delay, format!("{} is not a delay of 1ms to {}", quoted(&delay.value), duration::format(MAX_DELAY)))
            };
            Some(parsed.ok_or_else(why)?)
        }
    };
    let code = match code {
        None => None,
        Some(code) => {
            let known = (1..CODES).map(|number| Code::from(i32::try_from(number).unwrap_or_default()));
            let found = known.into_iter().find(|known| code_name(*known) == code.value);
            let why = || {
                of(code, format!("{} is not a status code of failed calls such as UNAVAILABLE", quoted(&code.value)))
            };
            Some(found.ok_or_else(why)?)
        }
    };
    if delay.is_none() && code.is_none() {
        return Err(of(text, "the fault has neither `delay` nor `code`"));
    }
    Ok(Fault { percent: percent.value, delay, code })
}

/// The stricter list can only leave out callers that the contract admits.
fn callers(
    rule: &Spanned<RuleText>,
    text: &AuditText,
    policy: &MethodPolicy,
    policies: PolicyTable,
) -> Result<Vec<String>, String> {
    if text.callers.is_empty() {
        return Err(of(rule, "`audit` names no callers"));
    }
    let is_service = |name: &str| policies.0.iter().any(|policy| policy.callers.contains(&name));
    for caller in &text.callers {
        let is_admitted = policy.allow.iter().any(|access| match access {
            Access::Public => {
                ["anonymous", "customer", "operator"].contains(&caller.value.as_str()) || is_service(&caller.value)
            }
            Access::Customer => caller.value == "customer",
            Access::Operator => caller.value == "operator",
            Access::Service => policy.callers.contains(&caller.value.as_str()),
        });
        if !is_admitted {
            let why = format!("the contract does not admit {} to {}", quoted(&caller.value), policy.name());
            return Err(of(caller, why));
        }
    }
    Ok(text.callers.iter().map(|caller| caller.value.clone()).collect())
}

#[cfg(test)]
mod tests;
