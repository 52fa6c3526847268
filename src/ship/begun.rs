//! Which copies the stream has begun at a destination, and what of its acknowledgements may be believed meanwhile.

use super::acks::Acked;
use crate::log::Acks;
use crate::types::Lsn;

/// Beginnings of copies that were posted on a link.
///
/// A destination that has not applied a beginning yet may still say that it counts: of the image before, which gets nothing of
/// what stands behind it. So may one that has been sent another beginning since.
#[derive(Debug, Default)]
pub struct Begun {
    /// The first since the newest copy was complete.
    first: Option<Lsn>,
    newest: Option<Lsn>,
}

impl Begun {
    /// A `SyncBegin` was posted at `begin`.
    pub fn posted(&mut self, begin: Lsn) {
        self.first.get_or_insert(begin);
        self.newest = Some(begin);
    }

    /// Whether the image that the newest copy began is the one that counts.
    pub fn is_copied(&self, acked: &Acked) -> bool {
        self.newest.is_none_or(|begin| acked.counts && acked.counts_from > begin)
    }

    /// What may be believed of `acks`: nothing from the first beginning on that the image that counts does not have behind it, since a
    /// promotion would yield that image.
    pub fn limit(&mut self, acks: Acks, acked: &Acked) -> Acks {
        if self.is_copied(acked) {
            self.first = None;
        }
        // Of several the image may have some behind it: none of the others begins before it counts.
        let first = self.first.map(|begin| begin.max(acked.counts_from));
        let limit = |lsn: Lsn| first.map_or(lsn, |begin| lsn.min(begin));
        Acks { received: limit(acks.received), durable: limit(acks.durable), applied: limit(acks.applied) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(begins: &[u64]) -> Begun {
        let mut begun = Begun::default();
        begins.iter().for_each(|begin| begun.posted(Lsn(*begin)));
        begun
    }

    fn counting_from(lsn: u64) -> Acked {
        Acked { counts: true, counts_from: Lsn(lsn), ..Acked::default() }
    }

    #[test]
    fn the_newest_copy_is_complete_once_its_image_counts() {
        let (none, one) = (begun(&[]), begun(&[640]));
        let old = counting_from(96);
        assert!(none.is_copied(&old));
        assert!(!one.is_copied(&old), "it still speaks of the image before");
        assert!(!one.is_copied(&Acked { counts: false, ..old }));
        assert!(!one.is_copied(&counting_from(640)), "of a copy that ends where the next one begins");
        assert!(one.is_copied(&counting_from(960)));
        assert!(!begun(&[640, 1280]).is_copied(&counting_from(960)));
    }

    #[test]
    fn nothing_past_the_first_beginning_that_is_not_behind_the_image_counts() {
        let acks = Acks { received: Lsn(2000), durable: Lsn(1800), applied: Lsn(320) };
        let mut two = begun(&[640, 1280]);
        let durable = |begun: &mut Begun, from| begun.limit(acks, &counting_from(from)).durable.0;
        assert_eq!(durable(&mut two, 96), 640, "it has not even heard of the first");
        assert_eq!(two.limit(acks, &counting_from(96)).applied, Lsn(320));
        assert_eq!(durable(&mut begun(&[640]), 640), 640, "of a copy that ends where the next one begins");
        assert_eq!(durable(&mut two, 960), 960, "the first one's image counts");
        assert_eq!(durable(&mut two, 1600), 1800);
        assert!(two.is_copied(&counting_from(1600)), "it is still known");
        two.posted(Lsn(1700));
        assert_eq!(durable(&mut two, 1600), 1700);
        assert_eq!(durable(&mut begun(&[]), 0), 1800);
    }
}
