//! The documents match the code: the diagrams, the settings, the failures, the tests that they name. `.ci/e2e.py` runs their commands.
//!
//! `UPDATE_README=1 cargo settings` writes diagrams, settings, failures and the golden trace into them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const SERVICES: [&str; 5] = ["user", "order", "payment", "data", "gateway"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

const MAP: &str = "services/README.md";
const SETTINGS: &str = "services/SETTINGS.md";
const FAILURES: &str = "services/FAILURES.md";

fn read(document: &str) -> String {
    std::fs::read_to_string(root().join(document)).unwrap_or_else(|error| panic!("{document} is readable: {error}"))
}

/// Checks that the text between `<!-- mark -->` and `<!-- /mark -->` is what the code generates.
fn check_generated(document: &str, mark: &str, expected: &str) {
    let (text, open, close) = (read(document), format!("<!-- {mark} -->\n"), format!("<!-- /{mark} -->"));
    let start = text.find(&open).unwrap_or_else(|| panic!("{document} has no {open}")) + open.len();
    let end = text.find(&close).unwrap_or_else(|| panic!("{document} has no {close}"));
    if std::env::var_os("UPDATE_README").is_some() {
        let updated = format!("{}{expected}{}", &text[..start], &text[end..]);
        std::fs::write(root().join(document), updated).expect("the document is writable");
        return;
    }
    assert_eq!(&text[start..end], expected, "{document} between {open}and {close}: UPDATE_README=1 updates it");
}

/// One setting, parsed from `--help`.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Setting {
    flag: String,
    env: String,
    default: String,
    meaning: String,
}

/// Cuts `[name: value]` out of a help text; the last one counts.
fn cut(text: &mut String, name: &str) -> Option<String> {
    let open = format!("[{name}: ");
    let mut found = None;
    while let Some(start) = text.find(&open) {
        let length = text[start..].find(']').expect("a bracket is closed");
        let cut = text[start + open.len()..start + length].to_owned();
        text.replace_range(start..=start + length, "");
        found = Some(cut);
    }
    found
}

/// The settings of a subcommand, or of the program without one, as listed by `--help`.
fn settings(subcommand: Option<&str>) -> Vec<Setting> {
    let mut program = Command::new(env!("CARGO_BIN_EXE_ordermesh"));
    let output = program.env_clear().args(subcommand).arg("--help").output().expect("the program runs");
    let help = String::from_utf8(output.stdout).expect("text");
    let mut found: Vec<(String, String)> = Vec::new();
    let mut in_options = false;
    for line in help.lines() {
        if line == "Options:" {
            in_options = true;
        } else if !line.starts_with(' ') && !line.is_empty() {
            in_options = false;
        }
        let text = line.trim();
        if !in_options || text.is_empty() {
            continue;
        }
        match text.split_once("--") {
            Some((before, flag)) if line.starts_with("      --") || before.ends_with(", ") => {
                found.push((flag.to_owned(), String::new()));
            }
            _ => {
                let Some((_, meaning)) = found.last_mut() else { continue };
                meaning.push_str(text);
                meaning.push(' ');
            }
        }
    }
    let own = found.into_iter().filter(|(flag, _)| flag != "help" && flag != "version");
    own.map(|(flag, mut meaning)| {
        let env = cut(&mut meaning, "env").unwrap_or_default().trim_end_matches('=').to_owned();
        let _ = cut(&mut meaning, "possible values");
        let default = cut(&mut meaning, "default").unwrap_or_default();
        let meaning = meaning.split_whitespace().collect::<Vec<_>>().join(" ");
        // A placeholder that only repeats the flag's name is omitted.
        let flag = match flag.split_once(' ') {
            Some((name, value)) if value == format!("<{}>", name.replace('-', "_").to_uppercase()) => name,
            Some(_) | None => &flag,
        };
        Setting { flag: format!("--{flag}"), env, default, meaning }
    })
    .collect()
}

fn table(title: &str, settings: &[Setting]) -> String {
    let mut text = format!("\n{title}\n\n| flag | environment | default | meaning |\n|---|---|---|---|\n");
    let code = |word: &str| if word.is_empty() { String::new() } else { format!("`{word}`") };
    for Setting { flag, env, default, meaning } in settings {
        let meaning = meaning.replace('|', "\\|").replace('<', "&lt;");
        let _ = writeln!(text, "| `{flag}` | {} | {} | {meaning} |", code(env), code(default));
    }
    text
}

#[test]
fn the_orders_diagram_matches_its_table() {
    check_generated(MAP, "lifecycle:order", &format!("```mermaid\n{}```\n", order::lifecycle::diagram()));
}

#[test]
fn the_payments_diagram_matches_its_table() {
    check_generated(MAP, "lifecycle:payment", &format!("```mermaid\n{}```\n", payment::lifecycle::diagram()));
}

#[test]
fn the_golden_trace_matches_the_one_compared_by_ci() {
    let golden = std::fs::read_to_string(root().join(".ci/golden-trace.txt")).expect("the golden trace is readable");
    check_generated(MAP, "golden-trace", &format!("```text\n{golden}```\n"));
}

#[test]
fn the_settings_match_the_help_texts() {
    let by_service: Vec<_> = SERVICES.into_iter().map(|service| (service, settings(Some(service)))).collect();
    // The gateway is not part of the platform: it has most of the common settings.
    let platform = &by_service[..4];
    let common: Vec<Setting> = by_service[0]
        .1
        .iter()
        .filter(|setting| platform.iter().all(|(_, all)| all.contains(setting)))
        .cloned()
        .collect();
    assert!(common.len() > 10, "expected more common settings: {common:?}");
    let mut text = table("**The whole system** (`ordermesh` without a subcommand):", &settings(None));
    let not_the_gateways =
        common.iter().filter(|setting| by_service[4].1.iter().all(|other| other.flag != setting.flag));
    let flags = not_the_gateways.map(|setting| setting.flag.split(' ').next());
    let flags: Vec<_> = flags.flatten().map(|flag| format!("`{flag}`")).collect();
    let title =
        format!("**Every service** (`user`, `order`, `payment`, `data`; `gateway` except {}):", flags.join(", "));
    text += &table(&title, &common);
    for (service, all) in &by_service {
        let own: Vec<Setting> = all.iter().filter(|setting| !common.contains(setting)).cloned().collect();
        assert!(!own.is_empty(), "expected settings of {service}'s own");
        text += &table(&format!("**`{service}`**:"), &own);
    }
    text.push('\n');
    check_generated(SETTINGS, "settings", &text);
}

#[test]
fn the_table_of_failures_is_that_of_the_demo() {
    let mut program = Command::new(env!("CARGO_BIN_EXE_ordermesh"));
    let output = program.env_clear().args(["demo", "--list", "--output", "markdown"]).output().expect("it runs");
    let table = String::from_utf8(output.stdout).expect("text");
    assert!(table.lines().count() > 50, "{table}");
    check_generated(FAILURES, "demo", &table);
}

/// The arrows of a flowchart between two of the services: `a & b -- text --> c`, `a -. text .-> b`.
fn arrows(flowchart: &str, services: &[&str]) -> BTreeSet<(String, String)> {
    let names = |text: &str| -> Vec<String> {
        text.split('&').map(str::trim).filter(|name| services.contains(name)).map(str::to_owned).collect()
    };
    let ends = flowchart.lines().filter_map(|line| {
        let (rest, to) = line.rsplit_once("> ")?;
        let (from, _) = rest.split_once(" -")?;
        Some((names(from), names(to)))
    });
    ends.flat_map(|(from, to)| {
        from.into_iter().flat_map(move |from| to.clone().into_iter().map(move |to| (from.clone(), to)))
    })
    .collect()
}

#[test]
fn the_readmes_picture_has_the_calls_that_the_contract_allows() {
    let mut program = Command::new(env!("CARGO_BIN_EXE_ordermesh"));
    let output = program.env_clear().args(["policies", "--output", "json"]).output().expect("it runs");
    let policies: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
    let mut allowed = BTreeSet::new();
    for policy in &policies {
        let to = text(&policy["service"]);
        for caller in policy["callers"].as_array().expect("a list") {
            allowed.insert((text(caller), to.clone()));
        }
        // Of the public ones services call the catalogue.
        if to == "data" && policy["access"].as_array().expect("a list").contains(&"public".into()) {
            allowed.insert(("order".to_owned(), to));
        }
    }
    allowed.retain(|(from, to)| from != to && !from.is_empty());
    let readme = read("README.md");
    let picture = readme.split("```mermaid\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a picture");
    let mut shown = arrows(picture, &SERVICES);
    assert!(shown.remove(&("payment".to_owned(), "gateway".to_owned())), "the gateway is external: {shown:?}");
    assert_eq!(shown, allowed);
}

/// Every .rs file below the folder.
fn sources(folder: &Path, found: &mut String) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push_str(&std::fs::read_to_string(&path).expect("a source file"));
        }
    }
}

#[test]
fn every_test_cited_by_the_documents_exists() {
    let text = [MAP, FAILURES, "services/GLOSSARY.md"].map(read).concat();
    let names: BTreeSet<&str> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| {
            // Tokens of the gateway begin with pm_.
            word.matches('_').count() >= 3
                && !word.starts_with("pm_")
                && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        })
        .collect();
    assert!(names.len() >= 40, "expected more tests behind promises and invariants: {names:?}");
    let mut code = String::new();
    for folder in ["services", "proto", "gateway-mock"] {
        sources(&root().join(folder), &mut code);
    }
    let missing: Vec<_> = names.into_iter().filter(|name| !code.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "the documents name tests that do not exist: {missing:?}");
}

/// The table's texts stand for messages: `…` for what differs.
#[test]
fn every_message_of_a_failed_first_step_is_the_programs() {
    let text = read(FAILURES);
    let section = text.split("## When a first step fails").nth(1).and_then(|rest| rest.split("\n## ").next());
    let rows = section.expect("the section").lines().filter(|line| line.contains(" | ordermesh | "));
    let messages: Vec<&str> =
        rows.filter_map(|row| row.split(" | ").next()).flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    assert!(messages.len() >= 12, "{messages:?}");
    let mut code = String::new();
    sources(&root().join("services"), &mut code);
    // Long messages continue on the next line of the code.
    let code = code.replace('\\', " ").split_whitespace().collect::<Vec<_>>().join(" ");
    for message in messages {
        let missing: Vec<_> =
            message.split(['…', ':', ';']).map(str::trim).filter(|part| !code.contains(part)).collect();
        assert!(missing.is_empty(), "{message:?} is not printed: {missing:?}");
    }
}

#[test]
fn the_readme_can_be_read_in_one_sitting() {
    let lines = read("README.md").lines().count();
    assert!(lines <= 250, "README.md has {lines} lines: the map is {MAP}");
}

#[test]
fn every_link_of_the_documents_leads_to_a_file() {
    let documents = ["README.md", MAP, SETTINGS, FAILURES, "services/GLOSSARY.md", "services/mesh/README.md"];
    let others = [".github/CONTRIBUTING.md", ".github/SECURITY.md", "deploy/README.md", "deploy/RUNBOOK.md"];
    let mut links = 0;
    for document in documents.into_iter().chain(others) {
        let text = read(document);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") || file.contains(' ') {
                continue;
            }
            links += 1;
            let path = root().join(document).with_file_name(file);
            assert!(path.exists(), "{document} links to {link}, which does not exist");
        }
    }
    assert!(links >= 20, "{links} links");
}
