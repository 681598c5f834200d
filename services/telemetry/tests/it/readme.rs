//! The table of variables in this crate's README is the code's. `UPDATE_README=1 cargo test -p telemetry` updates it.

use std::fmt::Write as _;

use telemetry::environment::{Handling, VARIABLES};

const OPEN: &str = "<!-- variables -->\n";
const CLOSE: &str = "<!-- /variables -->";

fn table() -> String {
    let mut text = String::from("\n| variable | | values, or the reason |\n|---|---|---|\n");
    for variable in VARIABLES {
        let (what, how) = match variable.handling {
            Handling::Supported(how) => ("supported", how),
            Handling::Rejected(why) => ("rejected", why),
            Handling::WithoutEffect(why) => ("no effect", why),
        };
        // The names of the signals share a row.
        let of_signals = match variable.name.strip_prefix("OTEL_EXPORTER_OTLP_") {
            Some(option) if variable.names().len() > 1 => {
                format!(", `OTEL_EXPORTER_OTLP_{{TRACES,METRICS,LOGS}}_{option}`")
            }
            Some(_) | None => String::new(),
        };
        let _ = writeln!(text, "| `{}`{of_signals} | {what} | {how} |", variable.name);
    }
    text.push('\n');
    text
}

#[test]
fn the_readmes_table_of_variables_matches_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let text = std::fs::read_to_string(path).expect("README.md is readable");
    let start = text.find(OPEN).expect("README.md has the table") + OPEN.len();
    let end = text.find(CLOSE).expect("README.md has the table's end");
    if std::env::var_os("UPDATE_README").is_some() {
        std::fs::write(path, format!("{}{}{}", &text[..start], table(), &text[end..])).expect("README.md is writable");
        return;
    }
    assert_eq!(&text[start..end], table(), "UPDATE_README=1 updates it");
}
