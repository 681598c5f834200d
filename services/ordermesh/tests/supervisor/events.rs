//! `ordermesh events` on a running system whose instances are killed.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};

use contracts::user::v1::LoginRequest;
use contracts::user::v1::user_service_client::UserServiceClient;
use mesh::{Channel, ClientConfig};
use tonic::Code;

use crate::system::{TIMEOUT, TestSystem, kill, readyz, until};

/// `ordermesh events --follow`, and the lines that it prints.
struct FollowProcess {
    process: Child,
    lines: Receiver<String>,
}

impl FollowProcess {
    fn start(system: &TestSystem, filters: &[&str]) -> Self {
        let mut command = system.command("events");
        command.args(["--follow", "-o", "json"]).args(filters).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().expect("it starts");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        let (to, lines) = channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| to.send(line)));
        Self { process, lines }
    }

    /// The trace of the next event.
    fn trace(&self) -> String {
        let line = self.lines.recv_timeout(TIMEOUT).expect("another line");
        let event: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(
            (&event["type"], &event["status"]),
            (&"EVENT_TYPE_USER_LOGIN".into(), &"EVENT_STATUS_FAILED".into())
        );
        event["traceId"].as_str().expect("a trace").to_owned()
    }
}

impl Drop for FollowProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A distinct trace id for each number.
fn trace(number: u32) -> String {
    format!("{:032x}", u128::from(number) + 1)
}

/// A rejected log-in, in a trace of its own.
async fn fail_to_log_in(users: &mut UserServiceClient<Channel>, number: u32) {
    let message = LoginRequest { email: format!("nobody-{number}@example.com"), password: "a wrong password".into() };
    let mut request = mesh::untraced(message);
    let parent = format!("00-{}-00f067aa0ba902b7-01", trace(number)).parse().expect("a header");
    request.metadata_mut().insert("traceparent", parent);
    let rejected = users.login(request).await.expect_err("there is no such account");
    assert_eq!(rejected.code(), Code::Unauthenticated, "{rejected:?}");
}

fn kill_an_instance_and_wait_for_another(system: &TestSystem, killed: usize) {
    let before = system.processes_of("data");
    kill("-KILL", before[killed % before.len()]);
    until("two instances are running again", || {
        let now = system.processes_of("data");
        now.len() == 2 && now != before
    });
    for instance in [1, 2] {
        let port = system.port_base + 1_400 + instance;
        until("it is ready again", || readyz(port) == "HTTP/1.1 200 OK");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_is_printed_once_even_if_instances_are_killed() {
    let (system, _) = TestSystem::with_instances(2);
    let addresses = [1, 2].map(|instance| format!("127.0.0.1:{}", system.port_base + 100 + instance)).to_vec();
    let mut users = UserServiceClient::new(mesh::client(ClientConfig::new("user", addresses, contracts::POLICIES)));
    let all: BTreeSet<String> = (0..40).map(trace).collect();
    for number in 0..10 {
        fail_to_log_in(&mut users, number).await;
    }
    let mut following = FollowProcess::start(&system, &["--type", "user_login", "--status", "failed"]);
    // Wait until its stream is open: a first attempt that fails is not retried but reported, as the system may not be
    // running.
    let mut printed = BTreeSet::from([following.trace()]);
    for number in 10..40 {
        fail_to_log_in(&mut users, number).await;
        if number % 8 == 0 {
            kill_an_instance_and_wait_for_another(&system, usize::try_from(number / 8).expect("few"));
        }
    }
    while printed.len() < all.len() {
        let trace = following.trace();
        assert!(printed.insert(trace.clone()), "{trace} twice");
    }
    assert_eq!(printed, all);
    kill("-INT", following.process.id());
    assert!(following.process.wait().expect("it exits").success(), "Ctrl-C ends it with success");
    assert_eq!(following.lines.recv().ok(), None, "nothing more was printed");
    // The same without `--follow`, as text; oldest first.
    let filters = ["--type", "user_login", "--type", "data_lookup", "--status", "failed", "--since", "1h"];
    let output = system.command("events").args(filters).output().expect("it exits");
    let lines = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success() && !lines.contains('\x1b'), "{lines}");
    let traces: Vec<_> = lines.lines().map(|line| line.rsplit(' ').next().expect("a trace").to_owned()).collect();
    assert_eq!(traces.len(), all.len(), "{lines}");
    assert_eq!(traces.iter().cloned().collect::<BTreeSet<_>>(), all);
    let times: Vec<_> = lines.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!((times.first(), times.last()), (times.iter().min(), times.iter().max()));
}

#[test]
fn an_invalid_filter_is_rejected_with_the_valid_values() {
    let (system, _) = TestSystem::start();
    for (arguments, code, message) in [
        (["--type", "login"], 2, "one of user_login, order_creation"),
        (["--status", "bad"], 2, "one of success, failed"),
        (["--since", "7"], 2, "a duration needs a unit"),
        (["--order", "seven"], 1, "order_id: not a UUID"),
        (["--trace", "seven"], 1, "32 lower-case hex digits"),
    ] {
        for follow in [&[][..], &["--follow"]] {
            let output = system.command("events").args(arguments).args(follow).output().expect("it exits");
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
            assert!(stderr.contains(message), "{arguments:?}: {stderr}");
        }
    }
}
