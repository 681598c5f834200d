//! What every service is mounted on: settings, start-up, the relay, errors.
