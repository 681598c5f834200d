//! `OTEL_EXPORTER_OTLP_…`: the endpoint of one signal and the options of its exporter. A signal's own variable takes
//! precedence over the general one.

use std::path::PathBuf;
use std::time::Duration;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use crate::environment::values::{Variables, pairs};
use crate::environment::{Signal, VariableError};

/// The specification's.
const TIMEOUT: Duration = Duration::from_secs(10);

const HEADERS: &str = "name=value,name=value, values percent-encoded (%2C for a comma, %20 for a blank)";
const GRPC_ENDPOINT: &str =
    "http://HOST:PORT, https://HOST:PORT, or HOST:PORT, which is https:// unless …_INSECURE is true";
const HTTP_ENDPOINT: &str = "http://HOST:PORT or https://HOST:PORT, with or without a path";

/// OTLP's transports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Protocol {
    Grpc,
    HttpProtobuf,
}

/// A file, and the variable that names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct File {
    pub(crate) variable: String,
    pub(crate) path: PathBuf,
}

/// The endpoint of one signal, and the options of its exporter.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) signal: Signal,
    pub(crate) protocol: Protocol,
    /// The variable that the endpoint was read from.
    pub(crate) variable: String,
    /// With a scheme; for HTTP with the signal's path.
    pub(crate) uri: Uri,
    /// Marked as sensitive: they may contain tokens.
    pub(crate) headers: HeaderMap,
    /// Limit of one export, retries included.
    pub(crate) timeout: Duration,
    pub(crate) gzip: bool,
    /// Roots of the collector's certificate; `None`: the system's.
    pub(crate) roots: Option<File>,
    /// The client certificate, and its key.
    pub(crate) client: Option<(File, File)>,
}

impl Target {
    /// Reads all variables of a signal; `None` when it has no endpoint, or its exporter is `none`.
    pub(super) fn read(
        variables: &Variables<'_>,
        signal: Signal,
        general: Option<(&str, &str)>,
        timeout: Option<Duration>,
    ) -> Result<Option<Self>, VariableError> {
        let options = Options { variables, signal };
        let exporter = format!("OTEL_{}_EXPORTER", signal.infix());
        let is_wanted = variables.choice(&exporter, &[("otlp", true), ("none", false)])?.unwrap_or(true);
        let protocols = [("grpc", Protocol::Grpc), ("http/protobuf", Protocol::HttpProtobuf)];
        let protocol = options.option("PROTOCOL", |name| variables.choice(name, &protocols))?.unwrap_or(Protocol::Grpc);
        let headers = options.option("HEADERS", |name| headers(name, variables))?.unwrap_or_default();
        let compressions = [("gzip", true), ("none", false)];
        let gzip = options.option("COMPRESSION", |name| variables.choice(name, &compressions))?.unwrap_or(false);
        let insecure = options.option("INSECURE", |name| variables.boolean(name))?.unwrap_or(false);
        let own_timeout = options.option("TIMEOUT", |name| variables.timeout(name))?.unwrap_or(TIMEOUT);
        let roots = options.file("CERTIFICATE")?;
        let client = options.client()?;
        let endpoint = Endpoint { protocol, insecure };
        // Both are parsed: a malformed one is rejected even when the other one takes precedence.
        let general = general.map(|(name, url)| endpoint.general(name, url, signal).map(|uri| (name.to_owned(), uri)));
        let general = general.transpose()?;
        let own_name = options.name("ENDPOINT");
        let own = variables.text(&own_name)?.map(|url| endpoint.exact(&own_name, &url)).transpose()?;
        let Some((variable, uri)) = own.map(|uri| (own_name, uri)).or(general).filter(|_| is_wanted) else {
            return Ok(None);
        };
        let timeout = timeout.map_or(own_timeout, |timeout| timeout.min(own_timeout));
        Ok(Some(Self { signal, protocol, variable, uri, headers, timeout, gzip, roots, client }))
    }

    /// The endpoint for log lines, without its query, which may contain a secret.
    pub(crate) fn masked(&self) -> String {
        let scheme = self.uri.scheme_str().unwrap_or_default();
        let authority = self.uri.authority().map_or("", Authority::as_str);
        let path = self.uri.path().trim_end_matches('/');
        format!("{scheme}://{authority}{path}")
    }
}

/// The options of one signal.
struct Options<'a> {
    variables: &'a Variables<'a>,
    signal: Signal,
}

impl Options<'_> {
    fn name(&self, option: &str) -> String {
        format!("OTEL_EXPORTER_OTLP_{}_{option}", self.signal.infix())
    }

    /// Reads the general variable and the signal's own, which takes precedence.
    fn option<T>(
        &self,
        option: &str,
        read: impl Fn(&str) -> Result<Option<T>, VariableError>,
    ) -> Result<Option<T>, VariableError> {
        let general = read(&format!("OTEL_EXPORTER_OTLP_{option}"))?;
        Ok(read(&self.name(option))?.or(general))
    }

    fn file(&self, option: &str) -> Result<Option<File>, VariableError> {
        self.option(option, |name| {
            let text = self.variables.text(name)?;
            Ok(text.map(|path| File { variable: name.to_owned(), path: path.into() }))
        })
    }

    fn client(&self) -> Result<Option<(File, File)>, VariableError> {
        let alone = |file: File, other: &str| {
            let allowed = format!("a certificate and its key together: set {other} too");
            Err(VariableError::new(&file.variable, "is set alone", allowed))
        };
        match (self.file("CLIENT_CERTIFICATE")?, self.file("CLIENT_KEY")?) {
            (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
            (Some(certificate), None) => alone(certificate, "OTEL_EXPORTER_OTLP_CLIENT_KEY"),
            (None, Some(key)) => alone(key, "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"),
            (None, None) => Ok(None),
        }
    }
}

/// Parses endpoints.
#[derive(Clone, Copy)]
struct Endpoint {
    protocol: Protocol,
    insecure: bool,
}

impl Endpoint {
    /// A signal's own endpoint: used as it is.
    fn exact(self, name: &str, url: &str) -> Result<Uri, VariableError> {
        let allowed = match self.protocol {
            Protocol::Grpc => GRPC_ENDPOINT,
            Protocol::HttpProtobuf => HTTP_ENDPOINT,
        };
        let invalid = |problem: &str| VariableError::new(name, problem, allowed);
        let has_scheme = url.split_once("://").is_some_and(|(scheme, _)| !scheme.contains(['/', '?', '#']));
        let url = match (has_scheme, self.protocol, self.insecure) {
            (true, ..) => url.to_owned(),
            (false, Protocol::Grpc, true) => format!("http://{url}"),
            (false, Protocol::Grpc, false) => format!("https://{url}"),
            (false, Protocol::HttpProtobuf, _) => return Err(invalid("has no scheme")),
        };
        // The parser's error is dropped: it may quote the URL.
        let uri: Uri = url.parse().map_err(|_| invalid("is no URL"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(invalid("has a scheme that is not supported"));
        }
        let authority = uri.authority().ok_or_else(|| invalid("has no host"))?;
        if authority.as_str().contains('@') {
            let allowed = format!("{allowed}; credentials go into OTEL_EXPORTER_OTLP_HEADERS");
            return Err(VariableError::new(name, "has a user name or a password", allowed));
        }
        let port = authority.as_str().strip_prefix(authority.host());
        if authority.host().is_empty() || port != Some("") && authority.port_u16().is_none_or(|port| port == 0) {
            return Err(invalid("has no host, or no port from 1 to 65535"));
        }
        Ok(uri)
    }

    /// The general endpoint: for HTTP the signal's path is appended.
    fn general(self, name: &str, url: &str, signal: Signal) -> Result<Uri, VariableError> {
        let uri = self.exact(name, url)?;
        if self.protocol == Protocol::Grpc {
            return Ok(uri);
        }
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let path = format!("{}/v1/{}{query}", uri.path().trim_end_matches('/'), signal.name());
        let path = PathAndQuery::try_from(path).map_err(|_| VariableError::new(name, "is no URL", HTTP_ENDPOINT))?;
        let mut parts = uri.into_parts();
        parts.scheme.get_or_insert(Scheme::HTTP);
        parts.path_and_query = Some(path);
        Uri::from_parts(parts).map_err(|_| VariableError::new(name, "is no URL", HTTP_ENDPOINT))
    }
}

fn headers(name: &str, variables: &Variables<'_>) -> Result<Option<HeaderMap>, VariableError> {
    let mut headers = HeaderMap::new();
    for (key, value) in pairs(name, variables, HEADERS)? {
        // A header's name is no secret; its value may be.
        let invalid = |problem: String| VariableError::new(name, problem, HEADERS);
        let header =
            HeaderName::try_from(&key).map_err(|_| invalid(format!("has {key:?}, which is no header name")))?;
        let mut value = HeaderValue::try_from(value)
            .map_err(|_| invalid(format!("has a value of {header} with characters that a header cannot have")))?;
        value.set_sensitive(true);
        headers.insert(header, value);
    }
    Ok((!headers.is_empty()).then_some(headers))
}
