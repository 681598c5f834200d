//! URLs of SQLite files. A path is percent-encoded in a URL (RFC 3986), so that any path has a URL that leads only to
//! it.

use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

/// The characters that are encoded in a path: all but RFC 3986's unreserved characters and the slash.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'-').remove(b'_').remove(b'~');

/// The URL of a file.
pub fn sqlite_url(file: &Path) -> String {
    let path = file.as_os_str().as_encoded_bytes();
    // SQLite would take a name with this prefix for a URI.
    let here = if path.starts_with(b"file:") { "./" } else { "" };
    let encoded = percent_encode(path, ENCODED).to_string();
    // Two slashes at the start would be taken for those of the URL.
    match encoded.strip_prefix("//") {
        Some(rest) => format!("sqlite://%2F%2F{rest}"),
        None => format!("sqlite://{here}{encoded}"),
    }
}

/// The parts of a SQLite URL, read as the driver reads it.
pub(crate) struct SqliteUrl<'a> {
    /// `None` in memory, and for a path that is not UTF-8, which the driver rejects.
    pub(crate) file: Option<PathBuf>,
    parameters: Option<&'a str>,
}

impl<'a> SqliteUrl<'a> {
    pub(crate) fn parse(url: &'a str) -> Self {
        let rest = url.trim_start_matches("sqlite:").trim_start_matches("//");
        let (path, parameters) = match rest.split_once('?') {
            Some((path, parameters)) => (path, Some(parameters)),
            None => (rest, None),
        };
        let is_in_memory =
            path == ":memory:" || parameters.is_some_and(|them| them.split('&').any(|it| it == "mode=memory"));
        let decoded = || percent_decode_str(path).decode_utf8().ok().map(|path| PathBuf::from(path.as_ref()));
        Self { file: (!is_in_memory).then(decoded).flatten(), parameters }
    }

    /// The same URL in the one form that all its readers accept: sea-orm's panics at a blank in the first folder's
    /// name.
    pub(crate) fn encoded(&self) -> Option<String> {
        let url = sqlite_url(self.file.as_deref()?);
        Some(match self.parameters {
            Some(parameters) => format!("{url}?{parameters}"),
            None => url,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Database, Options, check_url};

    /// Names with a special meaning in a URL, a LIKE, a shell or to SQLite.
    const NAMES: [&str; 22] = [
        "plain",
        "p%2Fq",
        "100%25",
        "100%",
        "%",
        "a?b",
        "a?mode=memory",
        "a#b",
        "a b",
        " ",
        "äöü",
        "日本",
        "a\nb",
        "a&b=c",
        "a:b",
        "file:x",
        ":memory:",
        "sqlite:",
        "u@h:1",
        "[::1]",
        "a\\b",
        "a+b'\"",
    ];

    #[test]
    fn every_path_is_recovered_from_its_url() {
        for name in NAMES {
            for path in
                [format!("/{name}/order.db"), format!("{name}/order.db"), format!("//{name}/x"), name.to_owned()]
            {
                let url = sqlite_url(Path::new(&path));
                assert!(check_url(&url).is_ok(), "{url}");
                let read = SqliteUrl::parse(&url);
                let expected = if path.starts_with("file:") { format!("./{path}") } else { path.clone() };
                assert_eq!(read.file.as_deref(), Some(Path::new(&expected)), "{url}");
                let options: sea_orm::sqlx::sqlite::SqliteConnectOptions = url.parse().expect("accepted by the driver");
                assert_eq!(options.get_filename(), Path::new(&expected), "{url}");
                assert_eq!(read.encoded(), Some(url));
            }
        }
        assert_eq!(sqlite_url(Path::new("data/order.db")), "sqlite://data/order.db");
        assert_eq!(sqlite_url(Path::new("/data/order.db")), "sqlite:///data/order.db");
    }

    #[test]
    fn an_in_memory_database_has_no_file() {
        for url in
            ["sqlite::memory:", "sqlite://:memory:", "sqlite://x?mode=memory", "sqlite://x?cache=shared&mode=memory"]
        {
            assert_eq!(SqliteUrl::parse(url).file, None, "{url}");
        }
        let read = SqliteUrl::parse("sqlite://my folder/x.db?mode=rwc");
        assert_eq!(read.encoded().as_deref(), Some("sqlite://my%20folder/x.db?mode=rwc"));
    }

    #[tokio::test]
    async fn a_database_is_created_in_exactly_its_folder_whatever_its_name() {
        let root = tempfile::tempdir().expect("a folder");
        for (number, name) in NAMES.into_iter().enumerate() {
            let parent = root.path().join(number.to_string());
            let file = parent.join(name).join("order.db");
            let options = Options { max_connections: 1, ..Options::default() };
            let db = Database::connect(&sqlite_url(&file), &options).await.expect(name);
            assert!(file.exists(), "{name}");
            let entries: Vec<_> = std::fs::read_dir(&parent).expect(name).flatten().map(|it| it.file_name()).collect();
            assert_eq!(entries, [std::ffi::OsStr::new(name)]);
            drop(db);
        }
    }

    #[tokio::test]
    async fn a_url_with_a_blank_does_not_panic() {
        let root = tempfile::tempdir().expect("a folder");
        let url = format!("sqlite://{}/a b/order.db", root.path().display());
        Database::connect(&url, &Options::default()).await.expect("it opens");
        assert!(root.path().join("a b/order.db").exists());
        // Relative: the folder's name is where a URL has its host.
        assert!(SqliteUrl::parse("sqlite://a b/order.db").encoded().is_some_and(|url| !url.contains(' ')));
    }
}
