//! `ordermesh completions`: what a shell needs to complete subcommands, flags and their values.

use clap::{Args, Command};
use clap_complete::{Shell, generate};

use crate::error::Error;
use crate::out;

#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(options: &Options, mut program: Command) -> Result<(), Error> {
    out::text(script(options.shell, &mut program))
}

fn script(shell: Shell, program: &mut Command) -> String {
    let mut script = Vec::new();
    let name = program.get_name().to_owned();
    generate(shell, program, name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, ValueEnum};

    #[test]
    fn each_script_completes_each_subcommand() {
        for shell in Shell::value_variants() {
            let script = script(*shell, &mut crate::Cli::command());
            for command in crate::Cli::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
            }
            assert!(script.contains("port-base"), "{shell}");
        }
    }
}
