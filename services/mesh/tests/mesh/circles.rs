//! No file of the crate depends on itself through others: each can be read after those that it uses.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The modules of a crate, by path, with their text. Tests belong to their module, and are left out.
fn modules(directory: &Path, prefix: &str, found: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path()) {
        let name = entry.file_stem().and_then(|name| name.to_str()).expect("UTF-8").to_owned();
        if entry.is_dir() {
            modules(&entry, &format!("{prefix}{name}::"), found);
        } else if name != "tests" && name != "testing" && name != "lib" {
            found.insert(format!("{prefix}{name}"), std::fs::read_to_string(entry).expect("a text"));
        }
    }
}

/// The modules that a text names after `crate::`: the longest path that is a module, of each item.
fn used(text: &str, all: &BTreeMap<String, String>) -> BTreeSet<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut used = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let path: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || "_:".contains(*c)).collect();
        let mut path = path.trim_end_matches(':');
        while !path.is_empty() && !all.contains_key(path) {
            path = path.rsplit_once("::").map_or("", |(parent, _)| parent);
        }
        if !path.is_empty() {
            used.insert(path.to_owned());
        }
    }
    used
}

/// A circle that can be reached from a module.
fn circle<'a>(at: &'a str, uses: &'a BTreeMap<String, BTreeSet<String>>, way: &mut Vec<&'a str>) -> Option<String> {
    if let Some(from) = way.iter().position(|module| *module == at) {
        return Some([&way[from..], &[at]].concat().join(" -> "));
    }
    way.push(at);
    let found = uses.get(at).into_iter().flatten().filter(|used| *used != at).find_map(|used| circle(used, uses, way));
    way.pop();
    found
}

fn circle_in(all: &BTreeMap<String, String>) -> Option<String> {
    let uses: BTreeMap<_, _> = all.iter().map(|(name, text)| (name.clone(), used(text, all))).collect();
    // Modules that no circle passes through are removed first, or every way through them would be followed.
    let mut left = uses.clone();
    loop {
        let before = left.len();
        let names: BTreeSet<_> = left.keys().cloned().collect();
        left.retain(|name, used| used.iter().any(|other| other != name && names.contains(other)));
        if left.len() == before {
            break;
        }
    }
    left.keys().find_map(|name| circle(name, &left, &mut vec![]))
}

#[test]
fn no_file_depends_on_itself_through_others() {
    let mut all = BTreeMap::new();
    modules(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut all);
    assert!(all.len() > 50, "{}", all.len());
    assert_eq!(circle_in(&all), None);
    // Control: one that is made up is found.
    let text = all.get_mut("policy").expect("a module");
    text.push_str("use crate::server::limits::shares::{Full, Shares};\n");
    let text = all.get_mut("server::limits::shares").expect("a module");
    text.push_str("use crate::policy::Access;\n");
    assert!(circle_in(&all).expect("a circle").contains("policy -> server::limits::shares"));
}
