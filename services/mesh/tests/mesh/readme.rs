//! The README cites a test for each feature: they exist.

use std::path::Path;

fn sources(directory: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path()) {
        match entry.is_dir() {
            true => text.push_str(&sources(&entry)),
            false => text.push_str(&std::fs::read_to_string(entry).expect("a text")),
        }
    }
    text
}

/// Test names: long identifiers in backticks.
fn named(readme: &str) -> Vec<&str> {
    let quoted = readme.split('`').skip(1).step_by(2);
    let names = quoted.map(|quoted| quoted.rsplit("::").next().unwrap_or(quoted));
    names.filter(|name| name.matches('_').count() >= 4).collect()
}

#[test]
fn every_test_that_the_readme_cites_exists() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(here.join("README.md")).expect("the README");
    let code = sources(&here.join("src")) + &sources(&here.join("tests"));
    let names = named(&readme);
    assert!(names.len() > 80, "{}", names.len());
    let missing: Vec<_> = names.into_iter().filter(|name| !code.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}
