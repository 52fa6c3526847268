//! pmemhad: configuration, sessions, control protocol, status.
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`config`] | the TOML file, checked as a whole, with messages that name line, key and remedy |
//! | [`control`] | the channel between agents |
//! | [`holder`], [`fdstore`] | who keeps log regions while application and agent die |

pub mod config;
pub mod control;
pub mod fdstore;
pub mod holder;
