//! Passwords in arguments. Every local user can read a process's command line, but only the environment of own
//! processes: a URL of a database or of NATS with a password is moved from the former to the latter.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::error::Error;
use crate::out;
use crate::service::Service;

/// The flags whose URLs may have a password, as they are forwarded to a service.
const FORWARDED: [&str; 2] = [".database-url", ".event-sink"];

/// If a URL with a password was given as a flag, executes this program again with the URL in its environment.
/// A password in a forwarded setting (`--order.database-url`) stays where it is, and a warning says what to do.
///
/// # Errors
/// The program cannot be executed again.
pub(crate) fn hide_passwords(args: impl IntoIterator<Item = OsString>) -> Result<(), Error> {
    let args: Vec<OsString> = args.into_iter().collect();
    if args.iter().any(|arg| arg.to_str().is_some_and(|arg| FORWARDED.iter().any(|flag| arg.contains(flag))))
        && has_forwarded_password(&args)
    {
        out::complain(
            "warning: a password in a --<service>.database-url or in --data.event-sink is in the command line, which every user of this \
             machine can read: set ORDERMESH_DATA_EVENT_SINK instead; run that service by itself with ORDERMESH_DATABASE_URL, or give the \
             role its password by a PGPASSFILE",
        );
    }
    let Hidden { kept, urls } = hidden(args);
    if urls.is_empty() {
        return Ok(());
    }
    let variables = urls.iter().map(|(variable, _)| variable.as_str()).collect::<Vec<_>>().join(", ");
    out::complain(format_args!(
        "warning: a URL's password was in the command line, which every user of this machine can read: set {variables} instead"
    ));
    let program = std::env::current_exe().map_err(|source| Error::Spawn("this program".into(), source))?;
    let mut again = Command::new(program);
    if let Some((name, rest)) = kept.split_first() {
        again.arg0(name).args(rest);
    }
    Err(Error::Spawn("this program".into(), again.envs(urls).exec()))
}

/// A command line without its secret URLs, and the environment variables for these.
#[derive(PartialEq, Eq, Debug)]
struct Hidden {
    kept: Vec<OsString>,
    urls: Vec<(String, OsString)>,
}

fn hidden(args: Vec<OsString>) -> Hidden {
    let mut hidden = Hidden { kept: Vec::with_capacity(args.len()), urls: Vec::new() };
    let mut args = args.into_iter().peekable();
    while let Some(arg) = args.next() {
        let text = arg.to_str().unwrap_or_default();
        let (flag, inline) = match text.split_once('=') {
            Some((flag, url)) => (flag, Some(OsString::from(url))),
            None => (text, None),
        };
        let variable = variable(flag);
        match (variable, inline) {
            (Some(variable), Some(url)) if has_password(&url) => hidden.urls.push((variable, url)),
            (Some(variable), None) if args.peek().is_some_and(|url| has_password(url)) => {
                hidden.urls.extend(args.next().map(|url| (variable, url)));
            }
            (_, _) => hidden.kept.push(arg),
        }
    }
    hidden
}

/// The variable of a flag: of `--event-sink`, of `--database-url`, and of verify's `--order-database-url` and so on.
fn variable(flag: &str) -> Option<String> {
    if flag == "--event-sink" {
        return Some("ORDERMESH_DATA_EVENT_SINK".to_owned());
    }
    let prefix = flag.strip_prefix("--")?.strip_suffix("database-url")?;
    match prefix.strip_suffix('-').map(Service::named) {
        None if prefix.is_empty() => Some("ORDERMESH_DATABASE_URL".to_owned()),
        Some(Some(service)) => Some(format!("ORDERMESH_{}_DATABASE_URL", service.name().to_uppercase())),
        None | Some(None) => None,
    }
}

fn has_forwarded_password(args: &[OsString]) -> bool {
    args.iter().any(|arg| {
        arg.to_str().is_some_and(|arg| has_password(OsStr::new(arg.split_once('=').map_or(arg, |(_, url)| url))))
    })
}

/// Whether a URL has a password: in `user:password@`, or in a parameter; of NATS, also a token: `token@`.
pub(crate) fn has_password(url: &OsStr) -> bool {
    let Some((scheme, rest)) = url.to_str().and_then(|url| url.split_once("://")) else { return false };
    if matches!(scheme, "nats" | "tls") {
        return rest.contains('@');
    }
    if !scheme.starts_with("postgres") {
        return false;
    }
    let user = rest.rsplit_once('@').map_or("", |(user, _)| user);
    user.split_once(':').is_some_and(|(_, password)| !password.is_empty()) || rest.contains("password=")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn urls_with_a_password_move_to_the_environment_and_nothing_else_does() {
        for (line, kept, variable) in [
            (
                "ordermesh --tls --database-url postgres://u:p@h/d --instances 1",
                "ordermesh --tls --instances 1",
                "ORDERMESH",
            ),
            ("ordermesh verify --database-url=postgres://u:p@h/d", "ordermesh verify", "ORDERMESH"),
            ("ordermesh verify --order-database-url postgres://u:p@h/d", "ordermesh verify", "ORDERMESH_ORDER"),
            ("ordermesh gateway --database-url postgres://u:p@h/d", "ordermesh gateway", "ORDERMESH"),
        ] {
            let Hidden { kept: args, urls } = hidden(words(line));
            assert_eq!(args, words(kept), "{line}");
            assert_eq!(urls, [(format!("{variable}_DATABASE_URL"), "postgres://u:p@h/d".into())], "{line}");
        }
        let sink = hidden(words("ordermesh data --event-sink tls://token@h --listen [::]:1"));
        let urls = vec![("ORDERMESH_DATA_EVENT_SINK".to_owned(), "tls://token@h".into())];
        assert_eq!(sink, Hidden { kept: words("ordermesh data --listen [::]:1"), urls });
        for line in [
            "ordermesh",
            "ordermesh data --event-sink nats://h:4222",
            "ordermesh --database-url",
            "ordermesh --database-url postgres://u@h/d",
            "ordermesh --database-url=postgres://u@h/d?a=b",
            "ordermesh --database-url sqlite://data/a:b@c.db",
            "ordermesh --order.database-url postgres://u:p@h/d",
        ] {
            assert_eq!(hidden(words(line)), Hidden { kept: words(line), urls: vec![] }, "{line}");
        }
    }

    #[test]
    fn a_password_is_found_wherever_a_url_may_have_one() {
        for url in [
            "postgres://u:p@h/d",
            "postgresql://u:p/q@h/d",
            "postgres://h/d?user=u&password=p",
            "nats://u:p@h",
            "tls://a,nats://t@b",
        ] {
            assert!(has_password(OsStr::new(url)), "{url}");
        }
        for url in
            ["postgres://u@h:5432/d", "postgres://u:@h/d", "postgres://h:5432/d?sslmode=require", "u:p@h", "nats://h"]
        {
            assert!(!has_password(OsStr::new(url)), "{url}");
        }
        assert!(has_forwarded_password(&words("ordermesh --order.database-url=postgres://u:p@h/d")));
        assert!(has_forwarded_password(&words("ordermesh --order.database-url postgres://u:p@h/d")));
        assert!(!has_forwarded_password(&words("ordermesh --order.database-url postgres://u@h/d")));
        assert!(has_forwarded_password(&words("ordermesh --data.event-sink nats://u:p@h")));
    }
}
