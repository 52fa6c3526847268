//! pmemhad: configuration, sessions, control protocol, status.
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`access`] | who may do what on this node's socket |
//! | [`chance`] | numbers by chance |
//! | [`clock`] | wall-clock times for people and machines |
//! | [`config`] | the TOML file, checked as a whole, with messages that name line, key and remedy |
//! | [`context`] | what every part of the agent shares |
//! | [`control`] | the channel between agents |
//! | [`daemon`] | the agent as a whole: start, serve, finish |
//! | [`events`] | the numbered event stream |
//! | [`group`] | a group at its source: log, regions, processes; what a controller does |
//! | [`roles`], [`role`] | the groups shared with other nodes; one of them, as source or destination |
//! | [`messenger`] | the way to the other node for who owns a group |
//! | [`application`], [`restarts`] | a group's application: frozen, thawed, killed, started, and how often |
//! | [`placement`] | places groups of threads over processor packages |
//! | [`power_watch`] | tells the groups of external power |
//! | [`budget_watch`] | whether the battery is enough for what groups expose |
//! | [`source`] | a group's stream at its source: the link, kept up |
//! | [`standby`] | a group's image at its destination |
//! | [`doctor`] | what a machine offers pmemha: `pmemha doctor` |
//! | [`fabrics`] | the networks of this node |
//! | [`ownership`] | who owns a group: drives the state machine of `failover` |
//! | [`holder`], [`fdstore`] | who keeps log regions while application and agent die |
//! | [`large_pages`] | large pages for the processes of this node's groups |
//! | [`local`] | controller of a group that is shipped nowhere |
//! | [`sessions`] | the Unix socket: applications and operators |
//! | [`state`] | what must outlive the agent |
//! | [`status`] | the document of `pmemha status`, and its text |
//! | [`users`] | users of the configuration as the numbers that the kernel knows |

pub mod access;
pub mod application;
pub mod budget_watch;
pub mod chance;
pub mod clock;
pub mod config;
pub mod context;
pub mod control;
pub mod daemon;
pub mod doctor;
mod envoys;
pub mod events;
pub mod fabrics;
pub mod fdstore;
pub mod group;
pub mod holder;
pub mod large_pages;
pub mod local;
pub mod messenger;
pub mod metrics;
pub mod ownership;
pub mod placement;
pub mod power_watch;
pub mod restarts;
pub mod role;
pub mod roles;
pub mod sessions;
pub mod source;
pub mod standby;
pub mod state;
pub mod status;
pub mod unusable;
pub mod users;
