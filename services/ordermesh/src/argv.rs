//! Passwords in arguments. Every user of the machine can read a process's command line, and the environment of its own
//! processes alone: a database URL with a password moves from the one to the other.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::error::Error;
use crate::out;
use crate::service::Service;

const FLAG: &str = "--database-url";

/// Becomes the same program again, with the URL in its environment, when it was given one with a password as a flag. A password
/// in a setting that is passed on (`--order.database-url`) stays where it is, and a warning says what to do.
///
/// # Errors
/// The program cannot be started again.
pub(crate) fn hide_passwords(args: impl IntoIterator<Item = OsString>) -> Result<(), Error> {
    let args: Vec<OsString> = args.into_iter().collect();
    if args.iter().any(|arg| arg.to_str().is_some_and(|arg| arg.contains(".database-url")))
        && has_passed_password(&args)
    {
        out::complain(
            "warning: a password in a --<service>.database-url is in the command line, which every user of this machine can read: \
             run that service by itself with ORDERMESH_DATABASE_URL, or give the role its password by a PGPASSFILE",
        );
    }
    let Some(Hidden { kept, variable, url }) = hidden(args) else { return Ok(()) };
    out::complain(format_args!(
        "warning: the database URL's password was in the command line, which every user of this machine can read: set {variable} instead"
    ));
    let program = std::env::current_exe().map_err(|source| Error::Spawn("this program".into(), source))?;
    let mut again = Command::new(program);
    if let Some((name, rest)) = kept.split_first() {
        again.arg0(name).args(rest);
    }
    Err(Error::Spawn("this program".into(), again.env(variable, url).exec()))
}

/// A command line without its URL.
#[derive(PartialEq, Eq, Debug)]
struct Hidden {
    kept: Vec<OsString>,
    variable: &'static str,
    url: OsString,
}

/// `None` when there is nothing to hide.
fn hidden(args: Vec<OsString>) -> Option<Hidden> {
    let is_gateway = args.get(1).is_some_and(|command| command == Service::Gateway.name());
    let variable = if is_gateway { "GATEWAY_DATABASE_URL" } else { "ORDERMESH_DATABASE_URL" };
    let (mut kept, mut url) = (Vec::with_capacity(args.len()), None);
    let mut args = args.into_iter().peekable();
    while let Some(arg) = args.next() {
        let inline = arg.to_str().and_then(|arg| arg.strip_prefix(FLAG)?.strip_prefix('=')).map(OsString::from);
        if inline.as_deref().is_some_and(has_password) {
            url = inline;
        } else if arg == FLAG && args.peek().is_some_and(|value| has_password(value)) {
            url = args.next();
        } else {
            kept.push(arg);
        }
    }
    url.map(|url| Hidden { kept, variable, url })
}

fn has_passed_password(args: &[OsString]) -> bool {
    args.iter().any(|arg| {
        arg.to_str().is_some_and(|arg| has_password(OsStr::new(arg.split_once('=').map_or(arg, |(_, url)| url))))
    })
}

/// In `user:password@`, or in a parameter.
fn has_password(url: &OsStr) -> bool {
    let Some((_, rest)) = url.to_str().filter(|url| url.starts_with("postgres")).and_then(|url| url.split_once("://"))
    else {
        return false;
    };
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
    fn a_url_with_a_password_moves_to_the_environment_and_nothing_else_does() {
        for (line, kept, variable) in [
            (
                "ordermesh --tls --database-url postgres://u:p@h/d --instances 1",
                "ordermesh --tls --instances 1",
                "ORDERMESH",
            ),
            ("ordermesh verify --database-url=postgres://u:p@h/d", "ordermesh verify", "ORDERMESH"),
            ("ordermesh gateway --database-url postgres://u:p@h/d", "ordermesh gateway", "GATEWAY"),
        ] {
            let hidden = hidden(words(line)).expect(line);
            assert_eq!(hidden.kept, words(kept), "{line}");
            assert_eq!(hidden.variable, format!("{variable}_DATABASE_URL"), "{line}");
            assert_eq!(hidden.url, "postgres://u:p@h/d", "{line}");
        }
        for line in [
            "ordermesh",
            "ordermesh --database-url",
            "ordermesh --database-url postgres://u@h/d",
            "ordermesh --database-url sqlite://data/a:b@c.db",
            "ordermesh --order.database-url postgres://u:p@h/d",
        ] {
            assert_eq!(hidden(words(line)), None, "{line}");
        }
    }

    #[test]
    fn a_password_is_found_wherever_a_url_may_have_one() {
        for url in ["postgres://u:p@h/d", "postgresql://u:p/q@h/d", "postgres://h/d?user=u&password=p"] {
            assert!(has_password(OsStr::new(url)), "{url}");
        }
        for url in ["postgres://u@h:5432/d", "postgres://u:@h/d", "postgres://h:5432/d?sslmode=require", "u:p@h"] {
            assert!(!has_password(OsStr::new(url)), "{url}");
        }
        assert!(has_passed_password(&words("ordermesh --order.database-url=postgres://u:p@h/d")));
        assert!(has_passed_password(&words("ordermesh --order.database-url postgres://u:p@h/d")));
        assert!(!has_passed_password(&words("ordermesh --order.database-url postgres://u@h/d")));
    }
}
