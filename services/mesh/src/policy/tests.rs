use super::*;

#[test]
fn a_servers_table_has_only_the_methods_of_its_services() {
    const fn method(path: &'static str) -> MethodPolicy {
        MethodPolicy { path, ..METHOD }
    }
    const ALL: PolicyTable =
        PolicyTable(&[method("/a.A/X"), method("/a.AB/X"), method("/b.B/X"), method("/b.B/Y"), method("/c.C/X")]);
    assert_eq!(ALL.services(), ["a.A", "a.AB", "b.B", "c.C"]);
    let some = ALL.of(&["a.A", "c.C"]);
    let paths: Vec<_> = some.0.iter().map(|method| method.path).collect();
    assert_eq!(paths, ["/a.A/X", "/c.C/X"]);
    assert_eq!((some.find("/b.B/X"), some.find("/c.C/X")), (None, ALL.find("/c.C/X")));
}
