//! Variables of earlier releases: of settings that were renamed, and of the gateway, which had names of its own for the
//! settings that it shares with the services. A supervisor of an earlier release, or its manifests, may still start
//! this one. A renamed flag is an alias of the present one.

use std::ffi::OsString;

use crate::service::Service;

/// The earlier variable, the flag, and the present variable.
type Earlier = (&'static str, &'static str, &'static str);

/// Of every service.
const OF_ALL: [Earlier; 1] = [("ORDERMESH_DRAIN_NOTICE", "--pre-drain-delay", "ORDERMESH_PRE_DRAIN_DELAY")];
const OF_ORDER: [Earlier; 1] = [("ORDERMESH_ORDER_MAX_DRIVES", "--max-in-flight", "ORDERMESH_ORDER_MAX_IN_FLIGHT")];
const OF_PAYMENT: [Earlier; 2] = [
    ("ORDERMESH_PAYMENT_ANSWER_WITHIN", "--wait-timeout", "ORDERMESH_PAYMENT_WAIT_TIMEOUT"),
    ("ORDERMESH_PAYMENT_MAX_DRIVES", "--max-in-flight", "ORDERMESH_PAYMENT_MAX_IN_FLIGHT"),
];
const OF_GATEWAY: [Earlier; 14] = [
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
    ("GATEWAY_DRAIN_NOTICE_MS", "--pre-drain-delay", "ORDERMESH_PRE_DRAIN_DELAY"),
    ("GATEWAY_DRAIN_TIMEOUT_MS", "--drain-timeout", "ORDERMESH_DRAIN_TIMEOUT"),
    ("GATEWAY_FAULT_NO_ANSWER_PER_MILLE", "--fault-no-response-per-mille", "GATEWAY_FAULT_NO_RESPONSE_PER_MILLE"),
    ("GATEWAY_FAULT_ANSWER_LOST_PER_MILLE", "--fault-response-lost-per-mille", "GATEWAY_FAULT_RESPONSE_LOST_PER_MILLE"),
];
/// Of the gateway too, for settings that are only on or off.
const SWITCHES_OF_GATEWAY: [Earlier; 2] = [
    ("GATEWAY_TRUST_CLIENT_TRACE_CONTEXT", "--trust-client-trace-context", "ORDERMESH_TRUST_CLIENT_TRACE_CONTEXT"),
    ("GATEWAY_MIGRATE_ONLY", "--migrate-only", "ORDERMESH_MIGRATE_ONLY"),
];
/// The flags that were renamed, with their earlier names, which clap accepts as aliases.
const RENAMED_FLAGS: [(&str, &str); 5] = [
    ("--max-in-flight", "--max-drives"),
    ("--pre-drain-delay", "--drain-notice"),
    ("--wait-timeout", "--answer-within"),
    ("--fault-no-response-per-mille", "--fault-no-answer-per-mille"),
    ("--fault-response-lost-per-mille", "--fault-answer-lost-per-mille"),
];

/// The arguments of a service, with a flag for each earlier variable. A flag or the present variable wins.
pub(crate) fn as_flags(mut args: Vec<OsString>, variable: impl Fn(&str) -> Option<OsString>) -> Vec<OsString> {
    let Some(service) = args.get(1).and_then(|command| command.to_str()).and_then(Service::named) else {
        return args;
    };
    let of_service: &[Earlier] = match service {
        Service::Order => &OF_ORDER,
        Service::Payment => &OF_PAYMENT,
        Service::Gateway => &OF_GATEWAY,
        Service::User | Service::Data => &[],
    };
    for (earlier, flag, present) in OF_ALL.iter().chain(of_service) {
        let Some(value) = variable(earlier).filter(|value| !value.is_empty()) else { continue };
        if !is_set(&args, flag) && variable(present).is_none() {
            let mut arg = OsString::from(format!("{flag}="));
            arg.push(value);
            arg.push(if earlier.ends_with("_MS") { "ms" } else { "" });
            args.push(arg);
        }
    }
    let switches: &[Earlier] = if service == Service::Gateway { &SWITCHES_OF_GATEWAY } else { &[] };
    for (earlier, flag, present) in switches {
        let is_on = variable(earlier).is_some_and(|value| value == "true" || value == "1");
        if is_on && !is_set(&args, flag) && variable(present).is_none() {
            args.push(flag.into());
        }
    }
    args
}

/// Whether the arguments contain a flag, by its present or its earlier name.
fn is_set(args: &[OsString], flag: &str) -> bool {
    let earlier = RENAMED_FLAGS.iter().find(|(present, _)| *present == flag).map(|(_, earlier)| *earlier);
    args.iter().filter_map(|arg| arg.to_str()?.split('=').next()).any(|name| name == flag || Some(name) == earlier)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

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
        let flags = ["--listen=[::]:7000", "--pre-drain-delay=5000ms", "--trust-client-trace-context"];
        assert_eq!(with("ordermesh gateway", &earlier)[2..], flags);
        assert_eq!(with("ordermesh order", &earlier).len(), 2);
    }

    #[test]
    fn a_renamed_settings_earlier_variable_is_its_flag() {
        let earlier = [("ORDERMESH_DRAIN_NOTICE", "5s"), ("ORDERMESH_PAYMENT_ANSWER_WITHIN", "1s")];
        assert_eq!(with("ordermesh payment", &earlier)[2..], ["--pre-drain-delay=5s", "--wait-timeout=1s"]);
        assert_eq!(with("ordermesh order", &earlier)[2..], ["--pre-drain-delay=5s"]);
        assert_eq!(with("ordermesh order", &[("ORDERMESH_ORDER_MAX_DRIVES", "9")])[2..], ["--max-in-flight=9"]);
        assert_eq!(with("ordermesh verify", &earlier).len(), 2);
        assert_eq!(with("ordermesh order --drain-notice 1s", &earlier).len(), 4, "the earlier flag wins as well");
    }

    #[test]
    fn a_renamed_flags_earlier_name_is_accepted() {
        let cli = crate::Cli::command();
        let arguments: Vec<_> = cli.get_subcommands().flat_map(|command| command.get_arguments()).collect();
        for (present, earlier) in RENAMED_FLAGS.map(|(present, earlier)| (&present[2..], &earlier[2..])) {
            let argument = arguments.iter().find(|argument| argument.get_long() == Some(present)).expect(present);
            assert_eq!(argument.get_all_aliases(), Some(vec![earlier]));
        }
    }

    #[test]
    fn a_flag_or_the_present_variable_wins() {
        let both = [("GATEWAY_LISTEN", "[::]:7000"), ("ORDERMESH_LISTEN", "[::]:1")];
        assert_eq!(with("ordermesh gateway", &both).len(), 2);
        assert_eq!(with("ordermesh gateway --listen [::]:2", &both[..1]).len(), 4);
    }
}
