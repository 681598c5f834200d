//! A mock of an external payment gateway with a durable ledger and faults on purpose.
