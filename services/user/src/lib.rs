//! User Service: accounts, passwords, sessions, signing keys.
