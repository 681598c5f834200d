//! How a system starts and stops.

use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::DirBuilderExt;
use std::process::Stdio;

use crate::system::{TestSystem, free_port_base, kill, ordermesh, readyz, system, until};

#[test]
fn a_system_reported_as_ready_is_ready_and_no_child_outlives_a_killed_supervisor() {
    let (mut system, stderr) = TestSystem::start();
    for port in system.admin_ports() {
        assert_eq!(readyz(port), "HTTP/1.1 200 OK", "port {port}");
    }
    let password = std::fs::read_to_string(system.data_dir.join("operator.txt")).expect("readable");
    let password = password.split_ascii_whitespace().nth(1).expect("a password");
    assert!(
        !stderr.contains(password) && stderr.contains("operator.txt"),
        "expected no password, because a pipe is not a terminal: {stderr}"
    );
    let mode = |name: &str| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(system.data_dir.join(name)).expect(name).permissions().mode() & 0o077
    };
    for name in ["", "order.db", "order.db-wal", "user.db", "gateway.db", "mesh.secret", "operator.txt", "keys"] {
        assert_eq!(mode(name), 0, "{name} is accessible to its owner only");
    }
    system.signal("-KILL");
    system.supervisor.wait().expect("it exits");
    system.until_first_admin_ports_are_free();
}

#[test]
fn a_killed_child_is_restarted() {
    let (system, _) = TestSystem::start();
    let before = system.children();
    assert_eq!(before.len(), 5);
    for child in &before {
        kill("-KILL", *child);
    }
    until("five new children", || {
        let now = system.children();
        now.len() == 5 && now.iter().all(|child| !before.contains(child))
    });
    for port in system.admin_ports() {
        until("it is ready again", || readyz(port) == "HTTP/1.1 200 OK");
    }
}

#[test]
fn sigterm_stops_everything_with_success() {
    let (mut system, _) = TestSystem::start();
    system.signal("-TERM");
    assert!(system.supervisor.wait().expect("it exits").success());
    for port in system.admin_ports() {
        assert!(
            TcpStream::connect(("127.0.0.1", port)).is_err(),
            "expected no child after its exit, but port {port} is open"
        );
    }
}

#[test]
fn a_system_with_an_invalid_setting_exits_immediately_and_names_it() {
    for (flag, value, named) in [
        ("--order.database-url", "postgres://shop:s3cr3t#Pw@127.0.0.1:5432/shop", "the database URL cannot be parsed"),
        ("--gateway.database-url", "postgres://shop:s3cr3t@h1:1,h2:port/shop", "the database URL cannot be parsed"),
        ("--payment.gateway-api-key-file", "/there/is/none", "the gateway's API key /there/is/none cannot be used"),
        ("--user.bootstrap-operator-file", "/there/is/none", "cannot be used multiple times"),
        ("--database-url", "postgres://shop:s3cr3t/Pw@127.0.0.1:5432/shop", "the database URL cannot be parsed"),
        ("--payment.gateway-api-key", "s3cr3t s3cr3t", "--gateway-api-key"),
        ("--data.event-sink", "http://shop:s3cr3t@127.0.0.1", "--event-sink is nats://"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut system = system(free_port_base(), &folder.path().join("data"), 1);
        let out = system.args([flag, value]).output().expect("it exits");
        let output = [out.stdout, out.stderr].map(|output| String::from_utf8_lossy(&output).into_owned()).join("\n");
        assert_eq!(out.status.code(), Some(2), "{flag}: {output}");
        assert!(output.contains(named) && !output.contains("s3cr3t"), "{flag}: {output}");
    }
}

#[test]
fn a_taken_port_is_reported() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = free_port_base();
    let _taken = TcpListener::bind(("127.0.0.1", base + 301)).expect("free");
    let out = system(base, &folder.path().join("data"), 1).output().expect("ends");
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success());
    assert!(
        stderr.contains(&format!("127.0.0.1:{} is taken", base + 301)) && stderr.contains("--port-base"),
        "{stderr}"
    );
}

#[test]
fn a_database_that_does_not_answer_is_reported_once_with_its_address_and_nothing_is_started() {
    let folder = tempfile::tempdir().expect("a folder");
    let data_dir = folder.path().join("data");
    let port = TcpListener::bind("127.0.0.1:0").expect("free").local_addr().expect("an address").port();
    let url = format!("postgres://shop@127.0.0.1:{port}/shop");
    let mut system = system(free_port_base(), &data_dir, 1);
    let mut supervisor = system.args(["--database-url", &url]).stdout(Stdio::piped()).spawn().expect("starts");
    let mut stdout = BufReader::new(supervisor.stdout.take().expect("piped"));
    let mut first = String::new();
    stdout.read_line(&mut first).expect("readable");
    assert!(first.starts_with("ordermesh: waiting up to a minute for the database: "), "{first}");
    assert!(first.contains(&format!("127.0.0.1:{port}: Connection refused")), "{first}");
    kill("-TERM", supervisor.id());
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("readable");
    assert_eq!((supervisor.wait().expect("it exits").code(), rest.as_str(), data_dir.exists()), (Some(0), "", false));
}

#[test]
fn a_file_that_is_not_a_database_ends_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let data_dir = folder.path().join("data");
    std::fs::DirBuilder::new().mode(0o700).create(&data_dir).expect("created");
    testkit::write_secret(data_dir.join("order.db"), &"not a database ".repeat(1_000));
    let out = system(free_port_base(), &data_dir, 1).output().expect("it exits");
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("the order service's database") && stderr.contains("file is not a database"), "{stderr}");
}

#[test]
fn a_temporary_folder_that_does_not_exist_is_reported_with_its_variable() {
    let out = ordermesh().args(["chaos", "--duration", "1s"]).env("TMPDIR", "/nowhere").output().expect("it exits");
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(
        !out.status.success() && stderr.contains("/nowhere cannot be used") && stderr.contains("TMPDIR"),
        "{stderr}"
    );
}

#[test]
fn a_low_limit_of_open_files_is_raised_to_what_is_permitted() {
    let script = "ulimit -Sn 64 && exec \"$0\" data --data-dir \"$1\"";
    let folder = tempfile::tempdir().expect("a folder");
    let mut service = std::process::Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_ordermesh")])
        .arg(folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut first = String::new();
    BufReader::new(service.stdout.take().expect("piped")).read_line(&mut first).expect("readable");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", service.id())).expect("running");
    service.kill().expect("running");
    service.wait().expect("it exits");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    let mut values = files.split_ascii_whitespace().skip(3).map(|value| value.parse().unwrap_or(u64::MAX));
    let (soft, hard) = (values.next().expect("soft"), values.next().expect("hard"));
    assert_eq!(soft, hard.min(10_240), "{files}");
}

/// Every local user can read command lines.
#[test]
fn a_password_in_a_database_url_is_removed_from_the_command_line() {
    let folder = tempfile::tempdir().expect("a folder");
    // Nothing listens there, so the process keeps retrying.
    let port = TcpListener::bind("127.0.0.1:0").expect("free").local_addr().expect("an address").port();
    let url = format!("postgres://shop:s3cr3t@127.0.0.1:{port}/shop");
    let mut service = std::process::Command::new(env!("CARGO_BIN_EXE_ordermesh"))
        .args(["data", "--database-url", &url, "--data-dir"])
        .arg(folder.path())
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("it starts");
    let of_process = |what: &str| {
        let read = std::fs::read(format!("/proc/{}/{what}", service.id())).expect("running");
        String::from_utf8_lossy(&read).into_owned()
    };
    // During an exec the command line reads as empty.
    until("the password has left the command line, and the other arguments are kept", || {
        let command_line = of_process("cmdline");
        command_line.contains("--data-dir") && !command_line.contains("s3cr3t")
    });
    assert!(of_process("environ").contains(&format!("ORDERMESH_DATABASE_URL={url}")));
    service.kill().expect("running");
    let stderr = service.wait_with_output().expect("it exits").stderr;
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(stderr.contains("set ORDERMESH_DATABASE_URL instead") && !stderr.contains("s3cr3t"), "{stderr}");
}
