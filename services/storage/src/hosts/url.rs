//! The URL of a PostgreSQL database with its hosts, in libpq's form.

use percent_encoding::percent_decode_str;
use sea_orm::sqlx::postgres::PgConnectOptions;

use crate::error::Error;

/// The URL's parameters that the driver knows (sqlx 0.9), apart from `options[…]`.
const PARAMETERS: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// Which servers may get a connection: libpq's `target_session_attrs`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    Any,
    ReadWrite,
    Primary,
}

/// The hosts of `postgres://USER@HOST:PORT,HOST:PORT/DATABASE?target_session_attrs=read-write`. With several hosts,
/// read-write is the default: a service has no use for a standby.
///
/// # Errors
/// [`Error::UrlMalformed`]; [`Error::TargetSessionAttrs`] for a value that leads to servers without writes;
/// [`Error::UrlParameter`].
pub(super) fn parse(url: &str) -> Result<(Vec<PgConnectOptions>, Target), Error> {
    let (before, hosts, after) = split(url).ok_or(Error::UrlMalformed)?;
    let hosts: Vec<&str> = hosts.split(',').collect();
    let has_several = hosts.len() > 1;
    let (after, target) = without_target(after, has_several)?;
    let target = match target {
        // Of several hosts any one would be the first that answers, which may be an old primary.
        Some(Target::Any) if has_several => return Err(Error::TargetSessionAttrs),
        Some(target) => target,
        None if has_several => Target::ReadWrite,
        None => Target::Any,
    };
    let parse = |host: &&str| {
        let is_named = !has_several || !host.is_empty();
        let url = format!("{before}{host}{after}");
        let options = url.parse::<PgConnectOptions>().ok().filter(|_| is_named).ok_or(Error::UrlMalformed)?;
        // The driver would look up an IPv6 address with its brackets as a name.
        let ipv6 = options.get_host().strip_prefix('[').and_then(|host| host.strip_suffix(']')).map(str::to_owned);
        Ok(match ipv6 {
            Some(address) => options.host(&address),
            None => options,
        })
    };
    let options = hosts.iter().map(parse).collect::<Result<_, Error>>()?;
    Ok((options, target))
}

/// The end of a URL without `target_session_attrs`, which the driver does not know. The driver ignores other parameters that
/// it does not know; here they are errors.
fn without_target(end: &str, has_several_hosts: bool) -> Result<(String, Option<Target>), Error> {
    let Some((base, parameters)) = end.split_once('?') else { return Ok((end.to_owned(), None)) };
    let mut target = None;
    let mut others = Vec::new();
    for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let name = &*percent_decode_str(name).decode_utf8_lossy();
        match (name, value) {
            ("target_session_attrs", "any") => target = Some(Target::Any),
            ("target_session_attrs", "read-write") => target = Some(Target::ReadWrite),
            ("target_session_attrs", "primary") => target = Some(Target::Primary),
            ("target_session_attrs", _) => return Err(Error::TargetSessionAttrs),
            // One value for all hosts.
            ("host" | "hostaddr" | "port", _) if has_several_hosts || value.contains(',') => {
                return Err(Error::UrlMalformed);
            }
            _ if PARAMETERS.contains(&name) || name.starts_with("options[") => others.push(parameter),
            _ => return Err(Error::UrlParameter),
        }
    }
    let separator = if others.is_empty() { "" } else { "?" };
    Ok((format!("{base}{separator}{}", others.join("&")), target))
}

/// What is before the hosts, the hosts, and what is after them.
fn split(url: &str) -> Option<(&str, &str, &str)> {
    let begin = url.find("://")? + "://".len();
    let end = url[begin..].find(['/', '?', '#']).map_or(url.len(), |length| begin + length);
    let authority = &url[begin..end];
    // A user for each host: the password would end at the last one.
    if authority.matches('@').count() > 1 && authority.contains(',') {
        return None;
    }
    let hosts = authority.rfind('@').map_or(begin, |at| begin + at + 1);
    Some((&url[..hosts], &url[hosts..end], &url[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> (Vec<String>, Target) {
        let (options, target) = parse(url).expect(url);
        let name = |host: &PgConnectOptions| {
            let database = host.get_database().unwrap_or("");
            format!("{}@{}:{}/{database}", host.get_username(), host.get_host(), host.get_port())
        };
        (options.iter().map(name).collect(), target)
    }

    #[test]
    fn each_host_has_the_urls_other_parts() {
        for (url, hosts, target) in [
            ("postgres://u:p@a/shop", vec!["u@a:5432/shop"], Target::Any),
            ("postgres://u@a/shop?target_session_attrs=primary", vec!["u@a:5432/shop"], Target::Primary),
            (
                "postgresql://u:p%40@a:1,b,[::1]:3/shop?sslmode=disable",
                vec!["u@a:1/shop", "u@b:5432/shop", "u@::1:3/shop"],
                Target::ReadWrite,
            ),
            (
                "postgres://u@a,b/shop?application_name=x&target_session_attrs=primary&options%5Bx%5D=1",
                vec!["u@a:5432/shop", "u@b:5432/shop"],
                Target::Primary,
            ),
            (
                "postgres://u@a,b/shop?target_session_attrs=read-write",
                vec!["u@a:5432/shop", "u@b:5432/shop"],
                Target::ReadWrite,
            ),
        ] {
            assert_eq!(parsed(url), (hosts.into_iter().map(str::to_owned).collect(), target), "{url}");
        }
        let socket = parse("postgres://u@localhost:7/shop?host=/run/postgresql").expect("a socket");
        assert_eq!(socket.0.len(), 1);
    }

    #[test]
    fn a_url_that_leads_to_standbys_or_names_no_host_is_refused() {
        assert!(matches!(parse("postgres://a,b/shop?target_session_attrs=any"), Err(Error::TargetSessionAttrs)));
        for value in ["read-only", "standby", "prefer-standby", "", "writable"] {
            let refused = parse(&format!("postgres://a,b/shop?target_session_attrs={value}"));
            assert!(matches!(refused, Err(Error::TargetSessionAttrs)), "{value}");
        }
        for url in [
            "postgres://a,/shop",
            "postgres://,a/shop",
            "postgres://a:x,b/shop",
            "postgres:a",
            "postgres://a,b/shop?port=5",
        ] {
            assert!(matches!(parse(url), Err(Error::UrlMalformed)), "{url}");
        }
        for name in ["connect_timeout=10", "sslmod=require", "sslmode=disable&x", "=1"] {
            let url = format!("postgres://a/shop?{name}");
            assert!(matches!(parse(&url), Err(Error::UrlParameter)), "{url}");
        }
    }
}
