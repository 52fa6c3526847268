//! The archive of a group: fed from the ring beside the destination, or alone.

use std::io;

use serde_json::json;

use super::Shared;
use crate::agent::config;
use crate::agent::events::Kind;
use crate::replica::archive::ArchiveConfig;
use crate::ship::archiver::{Archiver, Archiving, News};

impl Shared {
    pub(super) fn start_archiver(&self, config: &config::Archive) -> io::Result<Archiver> {
        let (group, table, event) = (&self.setup.group, self.table.clone(), self.setup.event.clone());
        let alone = self.destinations.is_empty();
        // With a destination, gaps are closed while it is connected, since it holds the ring meanwhile.
        self.syncer.set_flowing(alone);
        let dir = config.dir.display().to_string();
        let archiving = Archiving {
            log: group.log().clone(),
            config: ArchiveConfig {
                dir: config.dir.clone(),
                group: group.id(),
                keep_bytes: config.keep_bytes,
                keep_age: config.keep_age,
            },
            resumes: group.resumed(),
            space: (self.space.clone(), self.destinations.len()),
            copies: self.syncer.requester(),
            tell: Box::new(move |news| match news {
                News::Begun(lsn) => event(Kind::ArchiveBegun, json!({ "dir": dir, "lsn": lsn })),
                News::Failed(error, pause) => event(
                    Kind::ArchiveFailed,
                    json!({ "dir": dir, "why": error.to_string(), "again_in_s": pause.as_secs() }),
                ),
                News::Ended(poison) => {
                    event(Kind::ArchiveEnded, json!({ "dir": dir, "why": poison.to_string() }))
                }
            }),
            // One reader is enough to keep the table.
            observe: Box::new(move |header| {
                if alone {
                    table.observe(header);
                }
            }),
        };
        Archiver::start(self.setup.group.name(), archiving)
    }
}
