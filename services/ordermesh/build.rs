//! The contents of `ordermesh --version`: commit and date of the build, from `ORDERMESH_COMMIT` and `SOURCE_DATE_EPOCH`
//! if they are set (images, reproducible builds), else from git and the clock.

use std::process::Command;

fn main() {
    for name in ["ORDERMESH_COMMIT", "SOURCE_DATE_EPOCH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    // Only release builds have them: otherwise each commit would rebuild every test.
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = std::env::var("ORDERMESH_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = commit.or_else(|| if is_release { head() } else { None });
    let date = match std::env::var("SOURCE_DATE_EPOCH") {
        // The options of GNU date, then those of BSD date.
        Ok(epoch) => output_of("date", &["-u", "-d", &format!("@{epoch}"), "+%F"])
            .or_else(|| output_of("date", &["-u", "-r", &epoch, "+%F"])),
        Err(_) if is_release => output_of("date", &["-u", "+%F"]),
        Err(_) => None,
    };
    println!("cargo::rustc-env=ORDERMESH_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    println!("cargo::rustc-env=ORDERMESH_BUILD_DATE={}", date.as_deref().unwrap_or("unknown"));
}

/// The current commit.
fn head() -> Option<String> {
    // This file changes with every commit and checkout.
    if let Some(log) = output_of("git", &["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
    output_of("git", &["rev-parse", "--short=12", "HEAD"])
}

/// A program's output; `None` if it fails.
fn output_of(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}
