//! `ordermesh operator create`: no RPC creates an operator's account, so the program writes it to the User Service's
//! database.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::error::Error;
use crate::out;

/// The operation on operators' accounts.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Clone, Debug)]
enum Command {
    /// Create an operator's account
    Create(Box<Create>),
}

#[derive(Args, Clone, Debug)]
struct Create {
    /// The account's e-mail
    #[arg(long)]
    email: String,
    /// File with the account's password; a trailing newline is not part of it
    #[arg(long, value_name = "FILE")]
    password_file: PathBuf,
    /// The User Service's settings: --data-dir or --database-url select the database
    #[command(flatten)]
    service: user::Config,
}

/// Creates the account.
///
/// # Errors
/// A password that cannot be read; a database that cannot be used; an account that is invalid or exists.
pub(crate) async fn run(options: Options) -> Result<(), Error> {
    let Command::Create(create) = options.command;
    let password = std::fs::read_to_string(&create.password_file).map_err(|source| Error::File {
        path: create.password_file.clone(),
        action: "read",
        source,
    })?;
    let password = password.strip_suffix('\n').unwrap_or(&password);
    let user_id = user::create_operator(&create.service, &create.email, password).await?;
    out::line(format_args!("{} is an operator now: {user_id}", create.email))
}
