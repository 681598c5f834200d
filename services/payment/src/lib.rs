//! Payment Service: the payment's life against an external gateway.
