//! `ordermesh config check`: which settings a command would have, and where each comes from. `file`: the settings file.

mod file;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, Subcommand};
use serde::Serialize;

pub(crate) use crate::config::file::{FromFile, SettingsFile, is_secret};
use crate::earlier_variables;
use crate::error::Error;
use crate::forwarded_args::{self, ForwardedArgs};
use crate::json::{self, Format};
use crate::out;
use crate::service::Service;
use crate::{child, supervisor, table};

/// The variable that names the settings file.
const VARIABLE: &str = "ORDERMESH_CONFIG";

#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Clone, Debug)]
enum Action {
    /// Print the settings that a system or a command would have, and where each comes from; secrets are hidden
    Check(CheckOptions),
}

#[derive(Args, Clone, Debug)]
struct CheckOptions {
    /// Output format
    #[arg(long, short, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    output: Format,
    /// The flags of a system, or a command with its flags: for example `order --lease 5s`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    line: Vec<OsString>,
}

/// A command line with the settings of its file.
#[derive(Debug)]
pub(crate) struct CommandLine {
    pub(crate) args: Vec<OsString>,
    pub(crate) forwarded: ForwardedArgs,
    pub(crate) from_file: Vec<FromFile>,
    /// The arguments that were given; flags from earlier variables and from the file follow them.
    given: usize,
    /// Those and the flags from earlier variables.
    with_earlier: usize,
}

impl CommandLine {
    /// # Errors
    /// The settings file is invalid.
    pub(crate) fn new(args: Vec<OsString>, program: &Command) -> Result<Self, Error> {
        // What follows `config check` is another command's line.
        if args.get(1).is_some_and(|arg| arg == "config") {
            let given = args.len();
            let forwarded = ForwardedArgs::default();
            return Ok(Self { args, forwarded, from_file: vec![], given, with_earlier: given });
        }
        let (args, mut forwarded) = forwarded_args::split(args);
        let given = args.len();
        let mut args = earlier_variables::as_flags(args, |name| std::env::var_os(name));
        let with_earlier = args.len();
        let from_file = match file_of(&args) {
            None => vec![],
            Some(path) => SettingsFile::read(&path, program)?
                .apply(program, &mut args, &mut forwarded, |name| std::env::var_os(name).is_some()),
        };
        Ok(Self { args, forwarded, from_file, given, with_earlier })
    }

    /// Where the file sets a flag of this process, or of a service's.
    pub(crate) fn place(&self, service: Option<Service>, flag: &str) -> Option<&str> {
        let is_it = |from: &&FromFile| from.service == service && from.flag == flag;
        self.from_file.iter().find(is_it).map(|from| from.place.as_str())
    }
}

/// The settings file of a command line, or of the environment.
fn file_of(args: &[OsString]) -> Option<PathBuf> {
    let mut args = args.iter().take_while(|arg| *arg != "--");
    while let Some(arg) = args.next() {
        if arg == "--config" {
            return args.next().map(PathBuf::from);
        }
        if let Some(path) = arg.to_str().and_then(|arg| arg.strip_prefix("--config=")) {
            return Some(path.into());
        }
    }
    std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// A setting and its origin.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Row {
    /// With the service's name and a dot for one of a system's services.
    setting: String,
    /// Null: not set.
    value: Option<String>,
    /// `flag`, `default`, the variable, or the file and the line.
    from: String,
}

pub(crate) fn run(options: &Options, file: Option<PathBuf>, program: &Command) -> Result<(), Error> {
    let Action::Check(CheckOptions { output, line }) = &options.action;
    let name = program.get_name().to_owned().into();
    let file = file.map(|path| {
        let mut flag = OsString::from("--config=");
        flag.push(path);
        flag
    });
    let line = CommandLine::new(std::iter::once(name).chain(line.iter().cloned()).chain(file).collect(), program)?;
    let rows = rows(&line, program)?;
    match output {
        Format::Json => json::print(&rows),
        Format::Text => {
            let header = ["SETTING", "VALUE", "FROM"].map(str::to_owned);
            let rows = rows.into_iter().map(|row| [row.setting, row.value.unwrap_or_default(), row.from]);
            out::text(table::text(std::iter::once(header).chain(rows)))
        }
    }
}

fn rows(line: &CommandLine, program: &Command) -> Result<Vec<Row>, Error> {
    let cli = crate::parse(line)?;
    crate::check(&cli, line)?;
    let matches = matches(program, line.args.iter().cloned())?;
    let Some((name, matches)) = matches.subcommand() else {
        let mut rows = of_command(program, &matches, None, line);
        for service in Service::ALL {
            rows.extend(of_service(service, line, program)?);
        }
        return Ok(rows);
    };
    let command = program.find_subcommand(name);
    Ok(command.map(|command| of_command(command, matches, None, line)).unwrap_or_default())
}

fn matches(program: &Command, args: impl Iterator<Item = OsString>) -> Result<ArgMatches, Error> {
    program.clone().try_get_matches_from(args).map_err(|error| Error::Usage(crate::message_of(&error)))
}

/// What a system's service has beyond its defaults, and beyond what the system gives it.
fn of_service(service: Service, line: &CommandLine, program: &Command) -> Result<Vec<Row>, Error> {
    let args = [program.get_name().into(), service.name().into()].into_iter().chain(line.forwarded.all(service));
    let matches = matches(program, args)?;
    let (Some(command), Some((_, matches))) = (program.find_subcommand(service.name()), matches.subcommand()) else {
        return Ok(vec![]);
    };
    let is_own = |name: &OsStr| !child::is_removed(name) && !supervisor::is_provided(name);
    let rows = of_command(command, matches, Some(service), line);
    Ok(rows
        .into_iter()
        .filter(|row| row.from != "default" && row.value.is_some())
        .filter(|row| row.from.strip_prefix("environment ").is_none_or(|name| is_own(OsStr::new(name))))
        .collect())
}

fn of_command(command: &Command, matches: &ArgMatches, service: Option<Service>, line: &CommandLine) -> Vec<Row> {
    let is_setting = |id: &str| !["help", "version", "config"].contains(&id);
    command
        .get_arguments()
        .filter(|arg| is_setting(arg.get_id().as_str()))
        .map(|arg| {
            let id = arg.get_id().as_str();
            let name = arg.get_long().unwrap_or(id);
            let values = matches.get_raw(id).map(|values| values.collect::<Vec<_>>().join(OsStr::new(", ")));
            let value = values.map(|value| match is_secret(name) {
                true => "(hidden)".to_owned(),
                false => value.to_string_lossy().into_owned(),
            });
            let from = match matches.value_source(id) {
                Some(ValueSource::EnvVariable) => {
                    format!("environment {}", arg.get_env().unwrap_or_default().to_string_lossy())
                }
                Some(ValueSource::CommandLine) => origin(service, name, line),
                Some(_) | None => "default".to_owned(),
            };
            let prefix = service.map(|service| format!("{service}.")).unwrap_or_default();
            Row { setting: format!("{prefix}{name}"), value, from }
        })
        .collect()
}

/// Of a flag: given, or made of an earlier variable or a setting of the file.
fn origin(service: Option<Service>, name: &str, line: &CommandLine) -> String {
    let flag = format!("--{name}");
    if let Some(place) = line.place(service, &flag) {
        return place.to_owned();
    }
    let is_it = |arg: &OsString| arg.to_str().is_some_and(|arg| arg.split('=').next() == Some(&flag));
    let is_earlier = service.is_none() && line.args[line.given..line.with_earlier].iter().any(is_it);
    if is_earlier { "environment (an earlier variable)".to_owned() } else { "flag".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn check(text: &str, line: &str) -> Result<Vec<Row>, Error> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("o.yaml");
        std::fs::write(&path, text).expect("written");
        let line = format!("ordermesh {line} --config {}", path.display());
        let program = crate::Cli::command();
        let words = line.split_ascii_whitespace().map(OsString::from).collect();
        let mut rows = rows(&CommandLine::new(words, &program)?, &program)?;
        rows.iter_mut().for_each(|row| row.from = row.from.replace(&folder.path().display().to_string(), "DIR"));
        Ok(rows)
    }

    fn row(setting: &str, value: Option<&str>, from: &str) -> Row {
        Row { setting: setting.into(), value: value.map(str::to_owned), from: from.into() }
    }

    #[test]
    fn each_setting_has_its_origin() {
        let rows =
            check("instances: 1\norder:\n  lease: 5s\n", "--port-base 9000 --data.event-retention 30d").expect("valid");
        for expected in [
            row("port-base", Some("9000"), "flag"),
            row("instances", Some("1"), "DIR/o.yaml:1"),
            row("data-dir", Some("data"), "default"),
            row("database-url", None, "default"),
            row("order.lease", Some("5s"), "DIR/o.yaml:3"),
            row("data.event-retention", Some("30d"), "flag"),
        ] {
            assert!(rows.contains(&expected), "{expected:?} in {rows:?}");
        }
        assert!(!rows.iter().any(|row| row.setting.starts_with("user.")), "nothing is set for user: {rows:?}");
        let rows = check("memory-limit: 1GiB", "order --lease 5s").expect("valid");
        assert!(rows.contains(&row("lease", Some("5s"), "flag")), "{rows:?}");
        assert!(rows.contains(&row("memory-limit", Some("1GiB"), "DIR/o.yaml:1")), "{rows:?}");
    }

    #[test]
    fn secrets_are_hidden() {
        let rows = check("database-url: postgres://u@h/s3cr3t", "").expect("valid");
        assert!(rows.contains(&row("database-url", Some("(hidden)"), "DIR/o.yaml:1")), "{rows:?}");
        assert!(!format!("{rows:?}").contains("s3cr3t"));
    }

    #[test]
    fn an_invalid_value_is_reported_with_its_line() {
        for (text, line, place) in [
            ("instances: 1\norder:\n  lease: soon", "", "o.yaml:3"),
            ("instances: many", "", "o.yaml:1"),
            ("lease: soon", "order", "o.yaml:1"),
        ] {
            let error = check(text, line).expect_err(text).to_string();
            assert!(error.contains(place) && (error.contains("soon") || error.contains("many")), "{text}: {error}");
        }
    }

    #[test]
    fn settings_that_exclude_each_other_do_so_in_the_file_too() {
        let error = check("tls-cert: a.pem", "order").expect_err("a certificate without its key").to_string();
        assert!(error.contains("--tls-key"), "{error}");
        assert!(check("order:\n  tls-cert: a.pem", "").is_err(), "the system makes the certificates");
    }
}
