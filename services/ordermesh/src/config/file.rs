//! The settings file: YAML, with the names of the flags. At its top a setting applies to the system and to each service
//! that has it, as a variable of the environment does; below a service's name it applies to that service, as
//! `--order.lease` does:
//!
//! ```yaml
//! instances: 2
//! memory-limit: 256MiB
//! order:
//!   lease: 5s
//! ```
//!
//! Its settings become flags where neither a flag nor a variable sets them, so that they are checked as flags are.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Command};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

use crate::error::Error;
use crate::forwarded_args::ForwardedArgs;
use crate::service::Service;

/// A file with more is not a settings file.
const MAX_BYTES: u64 = 1 << 20;
/// Of a text of the file, as much is quoted.
const MAX_QUOTED: usize = 100;

/// A setting of the file.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Setting {
    /// `None`: at the top.
    service: Option<Service>,
    /// The flag, without its dashes.
    name: String,
    /// More than one for a flag that may be repeated.
    values: Vec<String>,
    line: u64,
}

/// A settings file, whose names are those of existing settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SettingsFile {
    path: PathBuf,
    settings: Vec<Setting>,
}

/// A flag that was made of a setting of the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FromFile {
    /// The process that has it; `None`: this one.
    pub(crate) service: Option<Service>,
    /// With its dashes.
    pub(crate) flag: String,
    /// The file and the line.
    pub(crate) place: String,
}

/// Whether a setting's value is a secret, by its name: it is neither printed nor passed on a command line.
pub(crate) fn is_secret(name: &str) -> bool {
    ["-key", "-secret", "-password"].iter().any(|end| name.ends_with(end)) || is_url(name)
}

/// Whether it is a URL, which is a secret if it has a password.
fn is_url(name: &str) -> bool {
    name.ends_with("-url") || name.ends_with("event-sink")
}

impl SettingsFile {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, is not valid, has a setting that no command has, or holds a secret that other users may read.
    pub(crate) fn read(path: &Path, program: &Command) -> Result<Self, Error> {
        let unreadable = |error: std::io::Error| {
            Error::Usage(format!("the settings file {} cannot be read: {error}", path.display()))
        };
        if std::fs::metadata(path).map_err(unreadable)?.len() > MAX_BYTES {
            return Err(Error::Usage(format!("{}: a settings file has at most 1 MiB", path.display())));
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let settings = parse(&text, program).map_err(|why| Error::Usage(format!("{}: {why}", path.display())))?;
        let holds_secret = settings.iter().filter(|setting| is_secret(&setting.name)).any(|setting| {
            !is_url(&setting.name) || setting.values.iter().any(|url| crate::argv::has_password(OsStr::new(url)))
        });
        if holds_secret {
            storage::ownership::check_secret(path)?;
        }
        Ok(Self { path: path.to_owned(), settings })
    }

    /// Adds flags to the arguments of a command, and to those that are forwarded by a system; returns which. `variable`
    /// says whether a variable is set.
    pub(crate) fn apply(
        &self,
        program: &Command,
        args: &mut Vec<OsString>,
        forwarded: &mut ForwardedArgs,
        variable: impl Fn(&OsStr) -> bool,
    ) -> Vec<FromFile> {
        let mut added = Vec::new();
        let given = |args: &[OsString], arg: &Arg| {
            let names = arg.get_long_and_visible_aliases().unwrap_or_default();
            let hidden = arg.get_all_aliases().unwrap_or_default();
            let is_it = |flag: &str| names.iter().chain(&hidden).any(|name| flag.strip_prefix("--") == Some(*name));
            args.iter().filter_map(|arg| arg.to_str()).any(|arg| is_it(arg.split('=').next().unwrap_or_default()))
                || arg.get_env().is_some_and(&variable)
        };
        let place = |setting: &Setting| format!("{}:{}", self.path.display(), setting.line);
        let name = args.get(1).and_then(|arg| arg.to_str()).filter(|arg| !arg.starts_with('-')).map(str::to_owned);
        let command = name.as_deref().map_or(Some(program), |name| program.find_subcommand(name));
        let Some(command) = command else { return added };
        let own = name.as_deref().and_then(Service::named);
        let before = args.clone();
        for (setting, arg) in self.of(own, command) {
            if !given(&before, arg) {
                args.extend(flags(setting, arg));
                added.push(FromFile { service: None, flag: format!("--{}", setting.name), place: place(setting) });
            }
        }
        if name.is_some() {
            return added;
        }
        for service in Service::ALL {
            let Some(command) = program.find_subcommand(service.name()) else { continue };
            let before = forwarded.of(service).to_vec();
            let of_service = self.of(Some(service), command);
            // The system passes its own settings on.
            let is_passed_on = |setting: &Setting| setting.service.is_none() && find(program, &setting.name).is_some();
            for (setting, arg) in of_service.into_iter().filter(|(setting, _)| !is_passed_on(setting)) {
                if given(&before, arg) {
                    continue;
                }
                let flag = format!("--{}", setting.name);
                match (arg.get_env().and_then(OsStr::to_str), setting.values.first()) {
                    (Some(variable), Some(value)) if is_secret(&setting.name) => {
                        forwarded.add_secret(service, &flag, variable, value);
                    }
                    (_, _) => forwarded.add(service, flags(setting, arg)),
                }
                added.push(FromFile { service: Some(service), flag, place: place(setting) });
            }
        }
        added
    }

    /// The settings that a command has: a service's own section first.
    fn of<'a>(&'a self, service: Option<Service>, command: &'a Command) -> Vec<(&'a Setting, &'a Arg)> {
        let mut found: Vec<(&Setting, &Arg)> = Vec::new();
        let section = self.settings.iter().filter(|setting| service.is_some() && setting.service == service);
        let top = self.settings.iter().filter(|setting| setting.service.is_none());
        for setting in section.chain(top) {
            if let Some(arg) = find(command, &setting.name)
                && found.iter().all(|(other, _)| other.name != setting.name)
            {
                found.push((setting, arg));
            }
        }
        found
    }
}

/// A command's setting by the name of its flag.
fn find<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|arg| arg.get_long() == Some(name))
}

/// The flags of a setting. `false` of a switch is none.
fn flags(setting: &Setting, arg: &Arg) -> Vec<OsString> {
    let flag = format!("--{}", setting.name);
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return if setting.values == ["true"] { vec![flag.into()] } else { vec![] };
    }
    setting.values.iter().map(|value| format!("{flag}={value}").into()).collect()
}

/// The settings of a file; each is one of a command, with values of the right kind.
fn parse(text: &str, program: &Command) -> Result<Vec<Setting>, String> {
    let Entries(top) = serde_saphyr::from_str(text).map_err(|error| mesh::yaml_error(&error))?;
    let mut settings = Vec::new();
    for (key, node) in top {
        match (Service::named(&key.value), node) {
            (Some(service), Node::Entries(Entries(section))) => {
                let command = program.find_subcommand(service.name()).into_iter().collect::<Vec<_>>();
                for (key, node) in section {
                    settings.push(setting(Some(service), &command, &key, node)?);
                }
            }
            (Some(service), Node::Values(_)) => {
                return Err(at(&key, format!("`{service}` has settings below it, indented")));
            }
            (None, node) => {
                let services = Service::ALL.into_iter().filter_map(|service| program.find_subcommand(service.name()));
                let commands: Vec<_> = std::iter::once(program).chain(services).collect();
                settings.push(setting(None, &commands, &key, node)?);
            }
        }
    }
    Ok(settings)
}

fn setting(
    service: Option<Service>,
    commands: &[&Command],
    key: &Spanned<String>,
    node: Node,
) -> Result<Setting, String> {
    let name = &key.value;
    let known = commands.iter().find_map(|command| find(command, name));
    let Some(arg) = known.filter(|arg| !["help", "version", "config"].contains(&arg.get_id().as_str())) else {
        let of =
            service.map_or("neither the system nor a service has".to_owned(), |service| format!("{service} has not"));
        let help = service.map_or("ordermesh --help".to_owned(), |service| format!("ordermesh {service} --help"));
        return Err(at(key, format!("{of} the setting {}: see `{help}`", quoted(name))));
    };
    let Node::Values(values) = node else {
        return Err(at(key, format!("`{name}` is a setting, and has nothing below it")));
    };
    if values.is_empty() || values.iter().any(String::is_empty) {
        return Err(at(key, format!("`{name}` has no value")));
    }
    if matches!(arg.get_action(), ArgAction::SetTrue) && values != ["true"] && values != ["false"] {
        return Err(at(key, format!("`{name}` is true or false")));
    }
    // A list of a flag that cannot be repeated is its comma-separated value.
    let is_repeated = matches!(arg.get_action(), ArgAction::Append);
    let values = if is_repeated { values } else { vec![values.join(",")] };
    Ok(Setting { service, name: name.clone(), values, line: key.referenced.line() })
}

fn at(key: &Spanned<String>, why: String) -> String {
    format!("line {}, column {}: {why}", key.referenced.line(), key.referenced.column())
}

fn quoted(text: &str) -> String {
    format!("{:?}", text.chars().take(MAX_QUOTED).collect::<String>())
}

/// A mapping, in its order.
#[derive(Debug)]
struct Entries(Vec<(Spanned<String>, Node)>);

/// What stands beside a key.
#[derive(Debug)]
enum Node {
    /// A scalar as it is written, or a list of them; empty for null.
    Values(Vec<String>),
    Entries(Entries),
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_any(NodeVisitor)? {
            Node::Entries(entries) => Ok(entries),
            // An empty file, or one that is commented out.
            Node::Values(values) if values.is_empty() => Ok(Self(vec![])),
            Node::Values(_) => Err(serde::de::Error::custom("expected settings: `NAME: VALUE`")),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, a list of values, or settings")
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Values(vec![value.to_owned()]))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Values(vec![value.to_string()]))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Values(vec![value.to_string()]))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Values(vec![value.to_string()]))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Values(vec![value.to_string()]))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Values(vec![]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut all = Vec::new();
        while let Some(node) = seq.next_element()? {
            match node {
                Node::Values(values) if values.len() == 1 => all.extend(values),
                Node::Values(_) | Node::Entries(_) => {
                    return Err(serde::de::Error::custom("a list has values only"));
                }
            }
        }
        Ok(Node::Values(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries: Vec<(Spanned<String>, Node)> = Vec::new();
        while let Some((key, node)) = map.next_entry::<Spanned<String>, Node>()? {
            entries.push((key, node));
        }
        Ok(Node::Entries(Entries(entries)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    const FILE: &str = "\
# A system.
instances: 1
tls: true
memory-limit: 256MiB
log: debug
order:
  lease: 5s
  memory-limit: 64MiB
data:
  trusted-proxies: [10.0.0.0/8, 192.168.0.0/16]
payment:
  gateway-api-key: s3cr3t-key-of-the-gateway
";
    const SINK: &str = "data:\n  event-sink: nats://u:p@h\n";

    fn file(text: &str) -> Result<SettingsFile, String> {
        Ok(SettingsFile { path: "o.yaml".into(), settings: parse(text, &crate::Cli::command())? })
    }

    /// The arguments with the file, those forwarded, and where the added ones stand.
    fn with(text: &str, line: &str, variables: &[&str]) -> (Vec<OsString>, ForwardedArgs, Vec<FromFile>) {
        let (mut own, mut forwarded) = crate::forwarded_args::split(line.split(' ').map(Into::into));
        let is_set = |name: &OsStr| variables.iter().any(|variable| name == *variable);
        let added = file(text).expect("valid").apply(&crate::Cli::command(), &mut own, &mut forwarded, is_set);
        (own.split_off(1), forwarded, added)
    }

    #[test]
    fn a_system_takes_the_top_and_forwards_the_rest_to_the_services_that_have_it() {
        let (own, forwarded, added) = with(FILE, "ordermesh", &[]);
        assert_eq!(own, ["--instances=1", "--tls", "--log=debug"]);
        assert_eq!(forwarded.of(Service::Order), ["--lease=5s", "--memory-limit=64MiB"]);
        assert_eq!(forwarded.of(Service::User), ["--memory-limit=256MiB"]);
        assert_eq!(
            forwarded.of(Service::Data),
            ["--trusted-proxies=10.0.0.0/8,192.168.0.0/16", "--memory-limit=256MiB"]
        );
        let lease = FromFile { service: Some(Service::Order), flag: "--lease".into(), place: "o.yaml:7".into() };
        assert!(added.contains(&lease), "{added:?}");
    }

    #[test]
    fn a_service_takes_its_section_before_the_top() {
        let (own, forwarded, _) = with(FILE, "ordermesh order", &[]);
        assert_eq!(own, ["order", "--lease=5s", "--memory-limit=64MiB", "--log=debug"]);
        assert!(forwarded.is_empty());
        assert_eq!(with(FILE, "ordermesh user", &[]).0, ["user", "--memory-limit=256MiB", "--log=debug"]);
    }

    #[test]
    fn another_command_takes_what_it_has_of_the_top() {
        assert_eq!(with("data-dir: d\ninstances: 1", "ordermesh verify", &[]).0, ["verify", "--data-dir=d"]);
        assert_eq!(with(FILE, "ordermesh nothing", &[]).0, ["nothing"]);
    }

    #[test]
    fn flags_and_variables_come_before_the_file() {
        let (own, forwarded, _) = with(FILE, "ordermesh --instances 3 --order.lease 1s", &["ORDERMESH_LOG"]);
        assert_eq!(own, ["--instances", "3", "--tls"]);
        assert_eq!(forwarded.of(Service::Order), ["--lease", "1s", "--memory-limit=64MiB"]);
        let earlier = with("pre-drain-delay: 1s", "ordermesh order --drain-notice=2s", &[]);
        assert_eq!(earlier.0, ["order", "--drain-notice=2s"], "an earlier name of a flag");
        assert_eq!(with("memory-limit: 1GiB", "ordermesh", &["ORDERMESH_MEMORY_LIMIT"]).1, ForwardedArgs::default());
    }

    #[test]
    fn secrets_are_forwarded_by_the_environment() {
        let (_, forwarded, _) = with(FILE, "ordermesh", &[]);
        assert_eq!(forwarded.of(Service::Payment), ["--memory-limit=256MiB"]);
        let (_, with_sink, _) = with(SINK, "ordermesh", &[]);
        assert_eq!(with_sink.of(Service::Data), [""; 0]);
        let sink: Vec<_> = with_sink.secrets_of(Service::Data).collect();
        assert_eq!(sink, [("ORDERMESH_DATA_EVENT_SINK".to_owned(), "nats://u:p@h".into())]);
        let secrets: Vec<_> = forwarded.secrets_of(Service::Payment).collect();
        assert_eq!(secrets, [("ORDERMESH_PAYMENT_GATEWAY_API_KEY".to_owned(), "s3cr3t-key-of-the-gateway".into())]);
    }

    #[test]
    fn an_invalid_file_is_rejected_with_its_line_and_without_its_values() {
        for (text, why) in [
            (
                "instances: 1\nmemory-budgt: s3cr3t",
                "line 2, column 1: neither the system nor a service has the setting",
            ),
            ("order:\n  search-quota: s3cr3t", "line 2, column 3: order has not the setting \"search-quota\""),
            ("order: s3cr3t", "line 1, column 1: `order` has settings below it"),
            ("order:\n  lease:", "line 2, column 3: `lease` has no value"),
            ("tls: s3cr3t", "line 1, column 1: `tls` is true or false"),
            ("instances:\n  s3cr3t: 1", "`instances` is a setting"),
            ("instances: 1\ninstances: 2", "duplicate mapping key: instances at line 2, column 1"),
            ("instances: [{s3cr3t: 1}]", "a list has values only"),
            ("s3cr3t", "expected settings"),
            ("config: s3cr3t", "neither the system nor a service"),
            ("log: \"s3cr3t", "line 1"),
        ] {
            let error = file(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
            assert!(!error.contains("s3cr3t"), "{text}: {error}");
        }
    }

    #[test]
    fn an_empty_file_sets_nothing() {
        for text in ["", "# instances: 1\n"] {
            assert_eq!(file(text).expect("valid").settings, []);
        }
    }

    #[test]
    fn a_file_with_a_secret_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("o.yaml");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("changed");
            SettingsFile::read(&path, &crate::Cli::command())
        };
        assert!(matches!(read(FILE), Err(Error::Exposed(_))));
        assert!(matches!(read("database-url: postgres://u:p@h/d"), Err(Error::Exposed(_))));
        assert!(matches!(read("data:\n  event-sink: nats://u:p@h"), Err(Error::Exposed(_))));
        assert!(read("database-url: postgres://u@h/d\ndata:\n  event-sink: nats://h").is_ok());
        let missing = SettingsFile::read(&folder.path().join("none.yaml"), &crate::Cli::command());
        assert_eq!(missing.expect_err("no file").exit_code(), 2);
    }
}
