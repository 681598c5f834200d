//! Settings that the supervisor forwards to one service's processes: `--order.memory-budget 4KiB`.

use std::collections::BTreeMap;
use std::ffi::OsString;

use crate::service::Service;

/// Each service's forwarded arguments, in addition to its addresses and secrets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct ForwardedArgs {
    args: BTreeMap<Service, Vec<OsString>>,
    /// The flag and the variable of each secret, and its value.
    secrets: BTreeMap<Service, Vec<[String; 3]>>,
}

impl ForwardedArgs {
    /// The arguments for a service's processes.
    pub(crate) fn of(&self, service: Service) -> &[OsString] {
        self.args.get(&service).map_or(&[], Vec::as_slice)
    }

    /// Variables for a service's processes: what must not stand in a command line, which every local user can read.
    pub(crate) fn secrets_of(&self, service: Service) -> impl Iterator<Item = (String, OsString)> {
        let secrets = self.secrets.get(&service).into_iter().flatten();
        secrets.map(|[_, variable, value]| (variable.clone(), value.into()))
    }

    /// All settings for a service as arguments, to be checked.
    pub(crate) fn all(&self, service: Service) -> impl Iterator<Item = OsString> {
        let secrets = self.secrets.get(&service).into_iter().flatten();
        let secrets = secrets.map(|[flag, _, value]| format!("{flag}={value}").into());
        self.of(service).iter().cloned().chain(secrets)
    }

    pub(crate) fn add(&mut self, service: Service, args: impl IntoIterator<Item = OsString>) {
        self.args.entry(service).or_default().extend(args);
    }

    pub(crate) fn add_secret(&mut self, service: Service, flag: &str, variable: &str, value: &str) {
        self.secrets.entry(service).or_default().push([flag, variable, value].map(str::to_owned));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.args.is_empty() && self.secrets.is_empty()
    }
}

/// Splits `--<service>.<flag>`, with `=<value>` or a separate value, from the arguments; the rest are the program's.
pub(crate) fn split(args: impl IntoIterator<Item = OsString>) -> (Vec<OsString>, ForwardedArgs) {
    let (mut own, mut forwarded) = (Vec::new(), ForwardedArgs::default());
    let mut args = args.into_iter().peekable();
    while let Some(arg) = args.next() {
        let Some((service, flag)) = arg.to_str().and_then(prefixed) else {
            own.push(arg);
            continue;
        };
        let has_value = flag.contains('=');
        let to = forwarded.args.entry(service).or_default();
        to.push(flag.into());
        // A following argument that does not begin with `--` is the flag's value: forwarded settings exclude subcommands
        // (`check` in lib.rs), and without one the program has no positional arguments.
        if !has_value && let Some(value) = args.next_if(|next| !next.as_encoded_bytes().starts_with(b"--")) {
            to.push(value);
        }
    }
    (own, forwarded)
}

fn prefixed(arg: &str) -> Option<(Service, String)> {
    let (service, flag) = arg.strip_prefix("--")?.split_once('.')?;
    Some((Service::named(service)?, format!("--{flag}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_words(line: &str) -> (Vec<OsString>, ForwardedArgs) {
        split(line.split_ascii_whitespace().map(OsString::from))
    }

    #[test]
    fn prefixed_settings_are_forwarded_to_their_service() {
        let (own, forwarded) =
            split_words("ordermesh --order.memory-budget 4KiB --instances 1 --data.fault=x=y --port-base 9000");
        assert_eq!(own, ["ordermesh", "--instances", "1", "--port-base", "9000"]);
        assert_eq!(forwarded.of(Service::Order), ["--memory-budget", "4KiB"]);
        assert_eq!(forwarded.of(Service::Data), ["--fault=x=y"]);
        assert!(forwarded.of(Service::User).is_empty());
    }

    #[test]
    fn a_setting_without_a_value_takes_no_other_argument() {
        let (own, forwarded) = split_words("ordermesh --user.bold --order.lease 1s --payment.quick");
        assert_eq!(own, ["ordermesh"]);
        assert_eq!(forwarded.of(Service::User), ["--bold"]);
        assert_eq!(forwarded.of(Service::Order), ["--lease", "1s"]);
        assert_eq!(forwarded.of(Service::Payment), ["--quick"]);
    }

    #[test]
    fn other_arguments_are_the_programs_own() {
        let (own, forwarded) = split_words("ordermesh --nobody.flag 1 --log order.x=info");
        assert_eq!(own, ["ordermesh", "--nobody.flag", "1", "--log", "order.x=info"]);
        assert!(forwarded.is_empty());
    }
}
