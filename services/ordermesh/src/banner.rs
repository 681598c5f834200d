//! The start-up output on a terminal: addresses, the operator's password on the first start, and commands to copy.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

use crate::data_dir::Login;
use crate::service::Service;
use crate::trace::Trace;

const NO_GRPCURL: &str = "\
grpcurl is not on PATH. The lines below call the system with it: go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4,
brew install grpcurl, or https://github.com/fullstorydev/grpcurl/releases

";

/// The contents of the start-up output.
#[derive(Clone, Debug)]
pub(crate) struct Banner {
    pub(crate) port_base: u16,
    pub(crate) instances: u16,
    /// With mutual TLS: the root certificates that clients trust.
    pub(crate) roots: Option<PathBuf>,
    pub(crate) processes: usize,
    pub(crate) took: Duration,
    /// Absolute, so that the commands work in any folder.
    pub(crate) data_dir: PathBuf,
    /// The operator created on this start, if the output is a terminal: the password must not get into files and
    /// journals.
    pub(crate) new_operator: Option<Login>,
    /// Whether the printed commands can run as they are.
    pub(crate) has_grpcurl: bool,
    /// The trace of the printed log-in and order.
    pub(crate) trace: Trace,
    /// The printed request ids, new on each start; the first also makes the account's e-mail unique.
    pub(crate) ids: [Uuid; 2],
}

impl Banner {
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "Ordermesh {} is ready: {} processes in {} ms, data in {}\n\n",
            env!("CARGO_PKG_VERSION"),
            self.processes,
            self.took.as_millis(),
            self.data_dir.display(),
        );
        for service in Service::ALL {
            let addresses = service.addresses(self.port_base, self.instances).join("  ");
            let _ = writeln!(text, "  {service:<9} {addresses}");
        }
        let _ = writeln!(
            text,
            "  {:<9} http://{}/readyz, and so on: each port + 1000",
            "health",
            Service::User.admin_address(self.port_base, 1)
        );
        let operator = match &self.new_operator {
            Some(login) => format!("{}, password {} (kept in operator.txt there)", login.email, login.password),
            None => format!("e-mail and password are in {}", self.operator_file()),
        };
        let _ = writeln!(text, "  {:<9} {operator}\n", "operator");
        if !self.has_grpcurl {
            text.push_str(NO_GRPCURL);
        }
        text.push_str("Lines to copy, in this order:\n");
        for (what, line) in self.lines() {
            let _ = write!(text, "\n# {what}\n{line}\n");
        }
        let _ = write!(text, "\nThe trace of it all is {}. Ctrl-C ends the system.", self.trace.id());
        text
    }

    /// The commands, each with its purpose. Values are in single quotes: the shell expands nothing in them.
    pub(crate) fn lines(&self) -> Vec<(&'static str, String)> {
        let [account, order] = &self.ids;
        let at = |service: Service| service.address(self.port_base, 1);
        let email = format!("ada-{}@example.com", &account.simple().to_string()[24..]);
        let password = "correct horse battery";
        let traced = format!("-H 'traceparent: {}'", self.trace);
        let tls = match &self.roots {
            Some(roots) => format!("-cacert {}", word(roots)),
            None => "-plaintext".to_owned(),
        };
        vec![
            (
                "register",
                format!(
                    r#"grpcurl {tls} -d '{{"request_id":"{account}","email":"{email}","password":"{password}","display_name":"Ada"}}' {} user.v1.UserService/Register"#,
                    at(Service::User)
                ),
            ),
            (
                "log in",
                format!(
                    r#"TOKEN=$(grpcurl {tls} {traced} -d '{{"email":"{email}","password":"{password}"}}' {} user.v1.UserService/Login | sed -n 's/.*"accessToken": "\(.*\)".*/\1/p')"#,
                    at(Service::User)
                ),
            ),
            (
                "look at the catalogue",
                format!(
                    r#"grpcurl {tls} -d '{{"text":"mug"}}' {} data.v1.CatalogService/ListProducts"#,
                    at(Service::Data)
                ),
            ),
            (
                "order",
                format!(
                    r#"ORDER=$(grpcurl {tls} -H "authorization: Bearer $TOKEN" {traced} -d '{{"request_id":"{order}","items":[{{"sku":"MUG-BLUE","quantity":2}}],"payment_method":"pm_card_visa","contact_email":"{email}","shipping_address":{{"recipient":"Ada Lovelace","lines":["Chausseestr. 1"],"city":"Berlin","postal_code":"10115","country_code":"DE"}}}}' {} order.v1.OrderService/CreateOrder | sed -n 's/.*"orderId": "\(.*\)".*/\1/p'); echo "order $ORDER""#,
                    at(Service::Order)
                ),
            ),
            (
                "watch it",
                format!(
                    r#"grpcurl {tls} -H "authorization: Bearer $TOKEN" -d '{{"order_id":"'$ORDER'"}}' {} order.v1.OrderService/WatchOrder"#,
                    at(Service::Order)
                ),
            ),
            (
                "log in as the operator, and see the stored trace events",
                format!(
                    r#"OPERATOR=$(grpcurl {tls} -d '{{"email":"'$(cut -d' ' -f1 {file})'","password":"'$(cut -d' ' -f2 {file})'"}}' {user} user.v1.UserService/Login | sed -n 's/.*"accessToken": "\(.*\)".*/\1/p'); grpcurl {tls} -H "authorization: Bearer $OPERATOR" -d '{{"trace_id":"{trace}"}}' {data} data.v1.TraceEventService/ListTraceEvents"#,
                    file = self.operator_file(),
                    user = at(Service::User),
                    trace = self.trace.id(),
                    data = at(Service::Data),
                ),
            ),
        ]
    }

    /// The operator's file, quoted for the shell.
    fn operator_file(&self) -> String {
        word(&crate::data_dir::operator_file(&self.data_dir))
    }
}

/// A path, quoted for the shell.
fn word(path: &Path) -> String {
    let path = path.display().to_string();
    if path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b)) {
        path
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn banner(new_operator: Option<Login>) -> Banner {
        Banner {
            port_base: 9000,
            instances: 2,
            roots: None,
            processes: 9,
            took: Duration::from_millis(420),
            data_dir: "/srv/my shop".into(),
            new_operator,
            has_grpcurl: true,
            trace: Trace::random(),
            ids: [Uuid::from_u128(7), Uuid::from_u128(8)],
        }
    }

    #[test]
    fn the_login_and_the_order_share_one_trace() {
        let banner = banner(None);
        let header = format!("-H 'traceparent: {}'", banner.trace);
        let traced: Vec<_> =
            banner.lines().into_iter().filter(|(_, line)| line.contains(&header)).map(|(what, _)| what).collect();
        assert_eq!(traced, ["log in", "order"]);
        let events = &banner.lines()[5].1;
        assert!(events.contains(&banner.trace.id()), "{events}");
    }

    #[test]
    fn without_grpcurl_the_output_says_how_to_install_it() {
        let without = Banner { has_grpcurl: false, ..banner(None) }.text();
        assert!(without.contains("grpcurl is not on PATH") && without.contains("go install "), "{without}");
        assert!(!banner(None).text().contains("not on PATH"));
    }

    #[test]
    fn the_commands_are_in_order_and_use_the_systems_ports() {
        let lines = banner(None).lines();
        let whats: Vec<_> = lines.iter().map(|(what, _)| *what).collect();
        assert_eq!(whats[..5], ["register", "log in", "look at the catalogue", "order", "watch it"]);
        let ports = ["9101", "9101", "9401", "9201", "9201", "9401"];
        for ((_, line), port) in lines.iter().zip(ports) {
            assert!(line.contains(&format!(" 127.0.0.1:{port} ")), "{line}");
        }
    }

    #[test]
    fn with_tls_every_command_trusts_the_systems_roots() {
        let banner = Banner { roots: Some("/srv/my shop/certs/ca.pem".into()), ..banner(None) };
        for (what, line) in banner.lines() {
            let calls = line.matches("grpcurl ").count();
            assert_eq!(line.matches("grpcurl -cacert '/srv/my shop/certs/ca.pem' ").count(), calls, "{what}");
        }
    }

    #[test]
    fn a_shell_parses_every_command() {
        for (what, line) in banner(None).lines() {
            let checked = std::process::Command::new("sh").args(["-n", "-c", &line]).output().expect("sh");
            assert!(checked.status.success(), "{what}: {}", String::from_utf8_lossy(&checked.stderr));
            assert!(!line.contains('\n'), "{what}");
        }
    }

    #[test]
    fn the_operators_password_is_printed_on_the_first_start_only() {
        let login = Login { email: "operator@ordermesh.local".into(), password: "s3cret-of-the-day".into() };
        assert!(banner(Some(login)).text().contains("password s3cret-of-the-day"));
        let later = banner(None).text();
        assert!(later.contains("are in '/srv/my shop/operator.txt'"), "{later}");
    }
}
