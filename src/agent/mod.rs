//! pmemhad: configuration, sessions, control protocol, status.
