use super::*;

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
}

fn settings(flags: &[&str]) -> Result<Settings, clap::Error> {
    use clap::Parser;
    Cli::try_parse_from([&["service"], flags].concat()).map(|cli| cli.settings)
}

#[test]
fn unusable_settings_are_rejected() {
    for (flag, invalid, valid) in [
        ("--max-concurrency", "0", "1"),
        ("--memory-limit", "99", "64MiB"),
        ("--max-message", "5MiB", "4MiB"),
        ("--trusted-proxies", "10.0.0.1", "10.0.0.0/8, fd00::/8"),
        ("--trusted-proxies", "10.0.0.0/8,10.0.0.0/33", ""),
        ("--database-connections", "0", "1"),
        ("--database-acquire-timeout", "0s", "1s"),
        ("--database-statement-timeout", "0s", "1s"),
    ] {
        assert!(settings(&[flag, invalid]).is_err(), "{flag} {invalid}");
        assert!(settings(&[flag, valid]).is_ok(), "{flag} {valid}");
    }
}

#[test]
fn tls_takes_three_files_or_none_and_excludes_the_mesh_secret() {
    assert!(settings(&[]).is_ok_and(|settings| settings.tls.files().is_none()));
    let three = ["--tls-cert", "a.pem", "--tls-key", "a.key", "--tls-ca", "ca.pem"];
    assert!(settings(&three).is_ok_and(|settings| settings.tls.files().is_some()));
    for missing in 0..3 {
        let two: Vec<_> =
            three.chunks(2).enumerate().filter(|(n, _)| *n != missing).flat_map(|(_, f)| f).copied().collect();
        assert!(settings(&two).is_err(), "{two:?}");
    }
    assert!(settings(&[&three[..], &["--mesh-secret-file", "x"]].concat()).is_err());
}
