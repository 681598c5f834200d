//! `ordermesh man`: a manual page for the program and for each subcommand.

use std::path::{Path, PathBuf};

use clap::{Args, Command};

use crate::error::Error;
use crate::out;

#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Existing folder to write the pages to, for example /usr/local/share/man/man1
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

pub(crate) fn run(options: &Options, program: Command) -> Result<(), Error> {
    let count = write(&options.folder, program).map_err(|source| Error::File {
        path: options.folder.clone(),
        action: "written",
        source,
    })?;
    out::line(format_args!(
        "{count} pages in {}: man {}/ordermesh.1",
        options.folder.display(),
        options.folder.display()
    ))
}

/// Writes the pages; returns their number.
fn write(folder: &Path, program: Command) -> std::io::Result<usize> {
    let program = program.disable_help_subcommand(true);
    let count = 1 + program.get_subcommands().map(|command| 1 + command.get_subcommands().count()).sum::<usize>();
    clap_mangen::generate_to(program, folder)?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn each_command_has_a_page_with_its_settings_and_the_exit_status() {
        let folder = tempfile::tempdir().expect("a folder");
        let count = write(folder.path(), crate::Cli::command()).expect("written");
        assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), count);
        let page = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect(name);
        assert!(page("ordermesh.1").contains("EXIT STATUS") || page("ordermesh.1").contains("Exit status"));
        for command in crate::Cli::command().get_subcommands() {
            let page = page(&format!("ordermesh-{}.1", command.get_name()));
            for long in command
                .get_arguments()
                .filter(|argument| !argument.is_hide_set())
                .filter_map(|argument| argument.get_long())
            {
                let escaped = long.replace('-', "\\-");
                assert!(page.contains(&escaped), "{}: {long}", command.get_name());
            }
        }
    }
}
