//! What two queue pairs must know of each other, exchanged over the control connection, and what follows from it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::ffi::ibv_mtu;

/// Bytes of a [`Card`].
pub const CARD: usize = size_of::<Card>();

const MAGIC: [u8; 8] = *b"PMHAVERB";

const VERSION: u32 = 1;

/// Queue pair and packet sequence numbers have 24 bits.
const MASK_24: u32 = (1 << 24) - 1;

/// Highest code of a path's MTU: 5 stands for 4096 bytes.
const MTU_MAX: u8 = ibv_mtu::IBV_MTU_4096 as u8;

/// One end of a connection, as it introduces itself. Little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Card {
    magic: [u8; 8],
    version: [u8; 4],
    /// Number of the queue pair.
    qpn: [u8; 4],
    /// Number of the first packet that it sends.
    psn: [u8; 4],
    /// InfiniBand's local address; zero on Ethernet.
    lid: [u8; 2],
    /// 1: InfiniBand, 2: Ethernet.
    link: u8,
    /// 1: InfiniBand or RoCE v1, 2: RoCE v2.
    kind: u8,
    /// Code of the port's MTU: 1 is 256 bytes, 5 is 4096.
    mtu: u8,
    /// Reads that it may have open.
    reads_out: u8,
    /// Reads of the peer's that it can serve at a time.
    reads_in: u8,
    /// 1: packets to it need a global route header.
    global: u8,
    reserved: [u8; 4],
    /// Its global address.
    gid: [u8; 16],
}

const _: () = assert!(CARD == 48);

/// The facts on a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Number of the queue pair.
    pub qpn: u32,
    /// Number of the first packet that it sends.
    pub psn: u32,
    /// InfiniBand's local address.
    pub lid: u16,
    /// Ethernet below, else InfiniBand.
    pub ethernet: bool,
    /// The GID is one of RoCE v2.
    pub v2: bool,
    /// Code of the port's MTU.
    pub mtu: u8,
    /// Reads that it may have open.
    pub reads_out: u8,
    /// Reads of the peer's that it can serve at a time.
    pub reads_in: u8,
    /// Packets to it need a global route header.
    pub global: bool,
    /// Its global address.
    pub gid: [u8; 16],
}

/// How our queue pair reaches the peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The peer.
    pub peer: Facts,
    /// Code of the MTU that both ports have.
    pub mtu: u8,
    /// Reads that we may have open.
    pub reads_out: u8,
    /// Reads of the peer's that we serve at a time.
    pub reads_in: u8,
    /// Whether packets carry a global route header.
    pub global: bool,
}

impl Card {
    /// The card that states `facts`.
    pub fn new(facts: &Facts) -> Card {
        Card {
            magic: MAGIC,
            version: VERSION.to_le_bytes(),
            qpn: facts.qpn.to_le_bytes(),
            psn: facts.psn.to_le_bytes(),
            lid: facts.lid.to_le_bytes(),
            link: if facts.ethernet { 2 } else { 1 },
            kind: if facts.v2 { 2 } else { 1 },
            mtu: facts.mtu,
            reads_out: facts.reads_out,
            reads_in: facts.reads_in,
            global: facts.global.into(),
            reserved: [0; 4],
            gid: facts.gid,
        }
    }

    /// What a card from the peer says; `Err` tells what is wrong with it.
    pub fn read(bytes: &[u8; CARD]) -> Result<Facts, String> {
        let card = Card::read_from_bytes(bytes).expect("a card's size");
        if card.magic != MAGIC {
            return Err("what it sent does not describe a queue pair".to_owned());
        }
        let version = u32::from_le_bytes(card.version);
        if version != VERSION {
            return Err(format!(
                "it speaks version {version} of the verbs fabric, we speak {VERSION}: install the same version on both"
            ));
        }
        let facts = Facts {
            qpn: u32::from_le_bytes(card.qpn),
            psn: u32::from_le_bytes(card.psn),
            lid: u16::from_le_bytes(card.lid),
            ethernet: card.link == 2,
            v2: card.kind == 2,
            mtu: card.mtu,
            reads_out: card.reads_out,
            reads_in: card.reads_in,
            global: card.global == 1,
            gid: card.gid,
        };
        let possible = facts.qpn <= MASK_24 && facts.psn <= MASK_24 && (1..=MTU_MAX).contains(&facts.mtu);
        // Whatever else is in the bytes is not what the sender of these facts would have written.
        if !possible || Card::new(&facts) != card {
            return Err("its queue pair's description holds impossible values".to_owned());
        }
        Ok(facts)
    }
}

impl Path {
    /// What `ours` and the `peer`'s card have in common.
    pub fn between(ours: &Facts, peer: &Facts) -> Result<Path, String> {
        let name = |ethernet| if ethernet { "Ethernet" } else { "InfiniBand" };
        if ours.ethernet != peer.ethernet {
            let (us, it) = (name(ours.ethernet), name(peer.ethernet));
            return Err(format!(
                "its RDMA port is on {it}, ours on {us}: name ports of one network in [rdma]"
            ));
        }
        if ours.v2 != peer.v2 {
            let name = |v2| if v2 { "RoCE v2" } else { "RoCE v1" };
            return Err(format!(
                "its address is of {}, ours of {}: set gid_index in [rdma] of one node, so that they agree",
                name(peer.v2),
                name(ours.v2)
            ));
        }
        let reads_out = ours.reads_out.min(peer.reads_in);
        let reads_in = ours.reads_in.min(peer.reads_out);
        if reads_out == 0 || reads_in == 0 {
            return Err("one of the two adapters cannot serve reads".to_owned());
        }
        Ok(Path {
            peer: *peer,
            mtu: ours.mtu.min(peer.mtu),
            reads_out,
            reads_in,
            global: ours.ethernet || ours.global || peer.global,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn facts() -> Facts {
        Facts {
            qpn: 0x11_2233,
            psn: 0xab_cdef,
            lid: 7,
            ethernet: true,
            v2: true,
            mtu: 5,
            reads_out: 16,
            reads_in: 4,
            global: false,
            gid: [9; 16],
        }
    }

    #[test]
    fn a_card_has_golden_bytes() {
        let bytes = Card::new(&facts()).as_bytes().to_vec();
        assert_eq!(&bytes[..12], b"PMHAVERB\x01\0\0\0");
        assert_eq!(bytes[12..20], [0x33, 0x22, 0x11, 0, 0xef, 0xcd, 0xab, 0]);
        assert_eq!(bytes[20..32], [7, 0, 2, 2, 5, 16, 4, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[32..], [9; 16]);
    }

    #[test]
    fn the_path_is_what_both_ends_can_do() {
        let ours = facts();
        let peer = Facts { mtu: 3, reads_out: 2, reads_in: 8, ..ours };
        let path = Path::between(&ours, &peer).unwrap();
        assert_eq!((path.mtu, path.reads_out, path.reads_in, path.global), (3, 8, 2, true));
        let back = Path::between(&peer, &ours).unwrap();
        assert_eq!((back.mtu, back.reads_out, back.reads_in), (3, 2, 8));
        let infiniband = Facts { ethernet: false, v2: false, ..ours };
        assert!(!Path::between(&infiniband, &infiniband).unwrap().global);
        assert!(Path::between(&infiniband, &Facts { global: true, ..infiniband }).unwrap().global);
    }

    #[test]
    fn ends_that_cannot_meet_are_told_why() {
        let wrong = |peer| Path::between(&facts(), &peer).unwrap_err();
        assert!(wrong(Facts { ethernet: false, v2: false, ..facts() }).contains("InfiniBand"));
        assert!(wrong(Facts { v2: false, ..facts() }).contains("gid_index"));
        assert!(wrong(Facts { reads_in: 0, ..facts() }).contains("reads"));
    }

    #[test]
    fn another_version_is_told_so() {
        let mut bytes: [u8; CARD] = Card::new(&facts()).as_bytes().try_into().unwrap();
        bytes[8] = 2;
        assert!(Card::read(&bytes).unwrap_err().contains("same version"));
        bytes[0] = 0;
        assert!(Card::read(&bytes).is_err());
    }

    proptest! {
        /// Whatever comes is refused or means one thing: the bytes that its sender would have written.
        #[test]
        fn every_card_that_is_accepted_is_canonical(mut bytes in proptest::array::uniform32(any::<u8>()), good in any::<bool>()) {
            let mut card = [0; CARD];
            card[..12].copy_from_slice(b"PMHAVERB\x01\0\0\0");
            if good {
                (bytes[3], bytes[7], bytes[10], bytes[11], bytes[12]) = (0, 0, 1 + bytes[10] % 2, 1 + bytes[11] % 2, 1 + bytes[12] % 5);
                (bytes[15], bytes[16], bytes[17], bytes[18], bytes[19]) = (bytes[15] % 2, 0, 0, 0, 0);
            }
            card[12..44].copy_from_slice(&bytes);
            match Card::read(&card) {
                Ok(facts) => prop_assert!(Card::new(&facts).as_bytes() == &card[..]),
                Err(_) => prop_assert!(!good),
            }
        }
    }
}
