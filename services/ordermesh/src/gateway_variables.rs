//! Variables of earlier releases: the gateway had names of its own for the settings that it now shares with the services.
//! A supervisor of an earlier release, or its manifests, may still start this one.

use std::ffi::OsString;

use crate::service::Service;

/// The earlier name, the flag, and the present name.
const EARLIER: [(&str, &str, &str); 12] = [
    ("GATEWAY_LISTEN", "--listen", "ORDERMESH_LISTEN"),
    ("GATEWAY_ADMIN_LISTEN", "--admin-listen", "ORDERMESH_ADMIN_LISTEN"),
    ("GATEWAY_INSTANCE", "--instance", "ORDERMESH_INSTANCE"),
    ("GATEWAY_DATABASE_URL", "--database-url", "ORDERMESH_DATABASE_URL"),
    ("GATEWAY_OTLP_ENDPOINT", "--otlp-endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    ("GATEWAY_LOG", "--log", "ORDERMESH_LOG"),
    ("GATEWAY_TLS_CERT", "--tls-cert", "ORDERMESH_TLS_CERT"),
    ("GATEWAY_TLS_KEY", "--tls-key", "ORDERMESH_TLS_KEY"),
    ("GATEWAY_TLS_CA", "--tls-ca", "ORDERMESH_TLS_CA"),
    ("GATEWAY_TRUST_DOMAIN", "--trust-domain", "ORDERMESH_TRUST_DOMAIN"),
    ("GATEWAY_DRAIN_NOTICE_MS", "--drain-notice", "ORDERMESH_DRAIN_NOTICE"),
    ("GATEWAY_DRAIN_TIMEOUT_MS", "--drain-timeout", "ORDERMESH_DRAIN_TIMEOUT"),
];
/// The same for settings that are only on or off.
const EARLIER_SWITCHES: [(&str, &str, &str); 2] = [
    ("GATEWAY_TRUST_CLIENT_TRACE_CONTEXT", "--trust-client-trace-context", "ORDERMESH_TRUST_CLIENT_TRACE_CONTEXT"),
    ("GATEWAY_MIGRATE_ONLY", "--migrate-only", "ORDERMESH_MIGRATE_ONLY"),
];

/// The arguments of `ordermesh gateway`, with a flag for each earlier variable. A flag or the present variable wins.
pub(crate) fn as_flags(mut args: Vec<OsString>, variable: impl Fn(&str) -> Option<OsString>) -> Vec<OsString> {
    if args.get(1).is_none_or(|command| command != Service::Gateway.name()) {
        return args;
    }
    let is_set = |args: &[OsString], flag: &str, present: &str| {
        let is_flag = |arg: &OsString| arg.to_str().is_some_and(|arg| arg.split('=').next() == Some(flag));
        args.iter().any(is_flag) || variable(present).is_some()
    };
    for (earlier, flag, present) in EARLIER {
        let Some(value) = variable(earlier).filter(|value| !value.is_empty()) else { continue };
        if !is_set(&args, flag, present) {
            let mut arg = OsString::from(format!("{flag}="));
            arg.push(value);
            arg.push(if earlier.ends_with("_MS") { "ms" } else { "" });
            args.push(arg);
        }
    }
    for (earlier, flag, present) in EARLIER_SWITCHES {
        let is_on = variable(earlier).is_some_and(|value| value == "true" || value == "1");
        if is_on && !is_set(&args, flag, present) {
            args.push(flag.into());
        }
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(line: &str, variables: &[(&str, &str)]) -> Vec<OsString> {
        let args = line.split(' ').map(OsString::from).collect();
        as_flags(args, |name| variables.iter().find(|(each, _)| *each == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn the_gateways_earlier_variables_are_its_flags() {
        let earlier = [
            ("GATEWAY_LISTEN", "[::]:7000"),
            ("GATEWAY_DRAIN_NOTICE_MS", "5000"),
            ("GATEWAY_TRUST_CLIENT_TRACE_CONTEXT", "true"),
            ("GATEWAY_MIGRATE_ONLY", "false"),
        ];
        let flags = ["--listen=[::]:7000", "--drain-notice=5000ms", "--trust-client-trace-context"];
        assert_eq!(with("ordermesh gateway", &earlier)[2..], flags);
        assert_eq!(with("ordermesh order", &earlier).len(), 2);
    }

    #[test]
    fn a_flag_or_the_present_variable_wins() {
        let both = [("GATEWAY_LISTEN", "[::]:7000"), ("ORDERMESH_LISTEN", "[::]:1")];
        assert_eq!(with("ordermesh gateway", &both).len(), 2);
        assert_eq!(with("ordermesh gateway --listen [::]:2", &both[..1]).len(), 4);
    }
}
