//! The program: a supervisor, each service, demo, explain.
