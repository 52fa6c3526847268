//! Which files a client may read, by the credentials that the kernel vouches for.

use crate::session::peer::Peer;

/// A client, as far as reading files goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reader {
    pub(super) uid: u32,
    pub(super) groups: Vec<u32>,
}

/// What somebody may do with a file, by the bit of its mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    Read = 4,
    Write = 2,
    /// Reach what is in a directory.
    Enter = 1,
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

    /// A user and the groups that it is in.
    pub fn new(uid: u32, groups: Vec<u32>) -> Reader {
        Reader { uid, groups }
    }

    /// Whether a file of this mode and owner may be opened for reading. See [`Reader::may`].
    pub(super) fn may_read(&self, mode: u32, owner: Owner, listed: bool) -> bool {
        self.may(Right::Read, mode, owner, listed)
    }

    /// Whether it has a right to a file of this mode and owner. One that has an access control list (`listed`) is for its
    /// owner only, so that nobody gets here what the list denies.
    pub(super) fn may(&self, right: Right, mode: u32, owner: Owner, listed: bool) -> bool {
        let bit = right as u32;
        // The first class that fits decides, as in the kernel.
        if self.uid == 0 {
            true
        } else if self.uid == owner.uid {
            mode & bit << 6 != 0
        } else if listed {
            false
        } else if self.groups.contains(&owner.gid) {
            mode & bit << 3 != 0
        } else {
            mode & bit != 0
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
