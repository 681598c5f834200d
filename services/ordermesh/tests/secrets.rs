//! Invalid settings end a start immediately, with exit code 2 and a message that names the setting; secrets in them
//! never appear in the output.

use std::path::Path;
use std::process::{Command, Stdio};

const SECRET: &str = "s3cr3t";

/// Invalid URLs, each with the password.
const URLS: [&str; 8] = [
    "postgres://shop:s3cr3t#Pw@127.0.0.1:5432/shop",
    "postgres://shop:s3cr3t/Pw@127.0.0.1:5432/shop",
    "postgres://shop:s3cr3t@127.0.0.1:port/shop",
    "postgres://shop:s3cr3t@h1:5432,h2:port/shop",
    "postgres://shop:s3cr3t@[::1:5432/shop",
    "postgres://shop:s3cr3t@127.0.0.1/shop?sslmode=bogus",
    "mysql://shop:s3cr3t@127.0.0.1/shop",
    "s3cr3t",
];

/// Runs the program in a folder until it exits; returns its output.
fn output_of_failed_start(folder: &Path, args: &[&str], env: &[(&str, &str)]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ordermesh"));
    for (name, _) in
        std::env::vars().filter(|(name, _)| ["ORDERMESH_", "GATEWAY_", "OTEL_"].iter().any(|it| name.starts_with(it)))
    {
        command.env_remove(name);
    }
    let out = command
        .args(args)
        .envs(env.iter().copied())
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("it exits");
    let output = [out.stdout, out.stderr].map(|output| String::from_utf8_lossy(&output).into_owned()).join("\n");
    assert_eq!(out.status.code(), Some(2), "{args:?} {env:?}: {output}");
    assert!(output.contains("error:") && !output.contains(SECRET), "{args:?} {env:?}: {output}");
    assert!(!output.contains("retrying:"), "expected no retry of an invalid setting: {output}");
    output
}

#[test]
fn every_command_rejects_an_invalid_database_url() {
    let folder = tempfile::tempdir().expect("a folder");
    let key = ("GATEWAY_API_KEY", "a-key");
    for url in URLS {
        for service in ["order", "data"] {
            output_of_failed_start(folder.path(), &[service], &[("ORDERMESH_DATABASE_URL", url)]);
        }
        output_of_failed_start(folder.path(), &["gateway"], &[key, ("ORDERMESH_DATABASE_URL", url)]);
        output_of_failed_start(folder.path(), &["verify", "--database-url", url], &[]);
        output_of_failed_start(folder.path(), &["--database-url", url], &[]);
        // As a positional argument: only a text with a scheme is recognised as a URL.
        if url.contains("://") {
            output_of_failed_start(folder.path(), &["data", url], &[]);
        }
    }
    for service in ["user", "payment"] {
        let env = [("ORDERMESH_DATABASE_URL", URLS[0]), ("ORDERMESH_PAYMENT_GATEWAY_API_KEY", "a-key")];
        let output = output_of_failed_start(folder.path(), &[service], &env);
        assert!(output.contains("the database URL cannot be parsed"), "{output}");
    }
}

#[test]
fn invalid_keys_and_secrets_are_rejected_and_not_quoted() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let write = |name: &str, text: &str| {
        testkit::write_secret(folder.path().join(name), text);
        at(name)
    };
    let pem = "-----BEGIN PRIVATE KEY-----\ns3cr3ts3cr3ts3cr3t\n-----END PRIVATE KEY-----\n";
    let mesh_secret = write("mesh", "s3cr3t");
    assert!(
        output_of_failed_start(folder.path(), &["data"], &[("ORDERMESH_MESH_SECRET_FILE", &mesh_secret)])
            .contains("the mesh secret")
    );
    std::fs::create_dir_all(folder.path().join("keys")).expect("a folder");
    write("keys/1.pem", pem);
    let keys = at("keys");
    assert!(output_of_failed_start(folder.path(), &["user", "--keys-dir", &keys], &[]).contains("1.pem"));
    let (certificate, key) = (write("tls.crt", "s3cr3t"), write("tls.key", pem));
    let tls = ["data", "--tls-cert", &certificate, "--tls-key", &key, "--tls-ca", &certificate];
    assert!(output_of_failed_start(folder.path(), &tls, &[]).contains("TLS"));
    let operator = write("operator", "s3cr3t");
    assert!(
        output_of_failed_start(folder.path(), &["user", "--bootstrap-operator-file", &operator], &[])
            .contains("operator")
    );
    let blank = write("gateway", "s3cr3t s3cr3t");
    assert!(
        output_of_failed_start(folder.path(), &["payment", "--gateway-api-key-file", &blank], &[]).contains("API key")
    );
    output_of_failed_start(folder.path(), &["payment"], &[("ORDERMESH_PAYMENT_GATEWAY_API_KEY", "s3cr3t s3cr3t")]);
    output_of_failed_start(folder.path(), &["gateway", "--api-key-file", &blank], &[]);
    output_of_failed_start(folder.path(), &["gateway"], &[("GATEWAY_API_KEY", "s3cr3t s3cr3t")]);
}

#[test]
fn invalid_opentelemetry_variables_are_rejected_and_not_quoted() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://us er:s3cr3t@collector:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://user:s3cr3t@collector:4317"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api key=s3cr3t"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "s3cr3t"),
    ] {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
        for args in [&["data"][..], &[]] {
            assert!(output_of_failed_start(folder.path(), args, &[endpoint, (name, value)]).contains(name));
        }
    }
}
