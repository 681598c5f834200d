//! Output to a closed pipe: `ordermesh … | head -1`, after `head` has exited.

use std::process::{Command, Stdio};

use crate::system::{TestSystem, free_port_base, kill, ordermesh, readyz, system, until};

/// A pipe whose reader is closed.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

/// The exit code that a shell reports for a program killed by SIGPIPE.
const ENDED_BY_A_PIPE: i32 = 128 + 13;

/// The command exits without a message.
fn ends_quietly(command: &mut Command) {
    let output = command.stdin(Stdio::null()).stdout(closed()).output().expect("it exits");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), stderr.as_ref()), (Some(ENDED_BY_A_PIPE), ""), "{command:?}");
}

#[test]
fn commands_without_a_system_exit_quietly_on_a_closed_pipe() {
    ends_quietly(ordermesh().args(["demo", "--list"]));
    let folder = tempfile::tempdir().expect("a folder");
    ends_quietly(ordermesh().args(["certs", "--dir"]).arg(folder.path().join("certs")));
    for service in ["user", "order", "payment", "data"] {
        let mut command = ordermesh();
        ends_quietly(command.args([service, "--migrate-only", "--data-dir"]).arg(folder.path()));
    }
    let ledger = format!("sqlite://{}", folder.path().join("gateway.db").display());
    ends_quietly(ordermesh().args(["gateway", "--migrate-only", "--api-key", "a-key", "--database-url", &ledger]));
    let password = folder.path().join("password");
    std::fs::write(&password, "correct horse battery").expect("written");
    let mut create = ordermesh();
    create.args(["operator", "create", "--email", "eve@example.com", "--password-file"]).arg(&password);
    ends_quietly(create.args(["--bcrypt-cost", "4", "--data-dir"]).arg(folder.path()));
}

#[test]
fn commands_on_a_system_exit_quietly_on_a_closed_pipe() {
    let (system, _) = TestSystem::start();
    let load = ["--orders", "3", "--customers", "1", "--accounts", "1"];
    let loaded = system.command("load").args(load).output().expect("it exits");
    assert!(loaded.status.success(), "control: {}", String::from_utf8_lossy(&loaded.stderr));
    ends_quietly(system.command("load").args(load));
    ends_quietly(&mut system.command("verify"));
    ends_quietly(system.command("demo").args(["--only", "success"]));
    ends_quietly(&mut system.command("events"));
    ends_quietly(system.command("events").args(["--follow", "-o", "json"]));
    let events = system.command("events").args(["-o", "json", "--type", "order_creation"]).output().expect("it exits");
    let event = String::from_utf8(events.stdout).expect("text").lines().next().expect("an event").to_owned();
    let event: serde_json::Value = serde_json::from_str(&event).expect("JSON");
    ends_quietly(system.command("explain").arg(event["orderId"].as_str().expect("an order")));
}

#[test]
fn a_system_keeps_running_on_a_closed_pipe() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = free_port_base();
    let mut supervisor = system(base, &folder.path().join("data"), 1).stdout(closed()).spawn().expect("starts");
    for offset in [101, 201, 301, 401, 501] {
        until("it is ready", || readyz(base + 1_000 + offset) == "HTTP/1.1 200 OK");
    }
    assert!(supervisor.try_wait().expect("watched").is_none(), "expected it to be running");
    kill("-TERM", supervisor.id());
    assert!(supervisor.wait().expect("it exits").success());
}
