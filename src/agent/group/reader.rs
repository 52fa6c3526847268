//! Which files a client may read, by the credentials that the kernel vouches for.

use crate::session::peer::Peer;

/// A client, as far as reading files goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reader {
    pub(super) uid: u32,
    groups: Vec<u32>,
}

/// Whose a file is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    pub uid: u32,
    pub gid: u32,
}

impl From<&Peer> for Reader {
    fn from(peer: &Peer) -> Reader {
        Reader { uid: peer.uid, groups: [&[peer.gid], &peer.groups[..]].concat() }
    }
}

impl Reader {
    /// Who may read everything.
    pub fn root() -> Reader {
        Reader { uid: 0, groups: vec![0] }
    }

    /// Whether a file of this mode and owner may be opened for reading. One that has an access control list (`listed`) is for its
    /// owner only, so that nobody gets here what the list denies.
    pub(super) fn may_read(&self, mode: u32, owner: Owner, listed: bool) -> bool {
        // The first class that fits decides, as in the kernel.
        if self.uid == 0 {
            true
        } else if self.uid == owner.uid {
            mode & 0o400 != 0
        } else if listed {
            false
        } else if self.groups.contains(&owner.gid) {
            mode & 0o040 != 0
        } else {
            mode & 0o004 != 0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_class_that_fits_decides_who_reads() {
        let owner = Owner { uid: 10, gid: 20 };
        let may =
            |uid, groups: &[u32], mode| Reader { uid, groups: groups.into() }.may_read(mode, owner, false);
        assert!(may(0, &[0], 0o200), "root");
        assert!(may(10, &[1], 0o600) && !may(10, &[20], 0o266), "the owner");
        assert!(may(11, &[1, 20], 0o240) && !may(11, &[1, 20], 0o626), "its group, also as a further one");
        assert!(may(11, &[1], 0o204) && !may(11, &[1], 0o662), "the others");
        let listed = |uid| Reader { uid, groups: vec![20] }.may_read(0o666, owner, true);
        assert!(listed(10) && !listed(11), "a list may deny it");
    }
}
