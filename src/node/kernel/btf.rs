//! Where the running kernel keeps a field: its own description of its types (`/sys/kernel/btf/vmlinux`, format BTF). Pure.
//!
//! Only what the page-table walk asks for is read: the offset of a named field of a named structure, through structures
//! without a name inside it. Bad input yields nothing, never a panic.

/// A description of types.
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins in `types`; the first one has number 1.
    starts: Vec<u32>,
}

impl<'a> Btf<'a> {
    /// Reads the table of types; `None` if it is no BTF, or one of a version that is not known here.
    pub fn parse(bytes: &'a [u8]) -> Option<Btf<'a>> {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize);
        let magic = u16::from_le_bytes(bytes.get(..2)?.try_into().ok()?);
        if magic != MAGIC || *bytes.get(2)? != VERSION {
            return None;
        }
        let header = word(4)?;
        let part = |off: usize, len: usize| {
            let from = header.checked_add(off)?;
            bytes.get(from..from.checked_add(len)?)
        };
        let (types, strings) = (part(word(8)?, word(12)?)?, part(word(16)?, word(20)?)?);
        let mut btf = Btf { types, strings, starts: Vec::new() };
        let mut at = 0;
        while at < types.len() {
            btf.starts.push(at as u32);
            let info = btf.word(at + 4)?;
            at = at.checked_add(12 + trailer(info)?)?;
        }
        Some(btf)
    }

    /// Bytes from the beginning of structure `name` to its field `field`; `None` if there is none, or it is a bit field.
    pub fn offset_of(&self, name: &str, field: &str) -> Option<usize> {
        self.starts.iter().find_map(|start| {
            let at = *start as usize;
            let is_struct = kind(self.word(at + 4)?) == STRUCT;
            (is_struct && self.is_named(self.word(at)?, name)).then(|| self.field(at, field, 0)).flatten()
        })
    }

    fn field(&self, at: usize, wanted: &str, depth: usize) -> Option<usize> {
        let info = self.word(at + 4)?;
        if depth > DEEPEST || !matches!(kind(info), STRUCT | UNION) {
            return None;
        }
        (0..count(info)).find_map(|i| {
            let member = at + 12 + 12 * i;
            let (name, of, place) = (self.word(member)?, self.word(member + 4)?, self.word(member + 8)?);
            let bits = if info >> 31 == 1 { place & 0xff_ffff } else { place } as usize;
            let inside = if self.is_named(name, wanted) {
                Some(0)
            } else if self.is_named(name, "") {
                let inner = *self.starts.get((of as usize).checked_sub(1)?)? as usize;
                self.field(inner, wanted, depth + 1)
            } else {
                None
            };
            inside.filter(|_| bits.is_multiple_of(8)).map(|inside| bits / 8 + inside)
        })
    }

    fn word(&self, at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(self.types.get(at..at.checked_add(4)?)?.try_into().ok()?))
    }

    fn is_named(&self, at: u32, name: &str) -> bool {
        let from = self.strings.get(at as usize..).unwrap_or_default();
        from.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }
}

fn kind(info: u32) -> u32 {
    info >> 24 & 0x1f
}

fn count(info: u32) -> usize {
    (info & 0xffff) as usize
}

/// Bytes behind the three words that every type begins with.
fn trailer(info: u32) -> Option<usize> {
    let each = match kind(info) {
        2 | 7..=12 | 16 | 18 => return Some(0),
        1 | 14 | 17 => return Some(4),
        3 => return Some(12),
        STRUCT | UNION | 15 | 19 => 12,
        6 | 13 => 8,
        _ => return None,
    };
    Some(each * count(info))
}

const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
const STRUCT: u32 = 4;
const UNION: u32 = 5;

/// Structures without a name inside each other: the kernel's go three deep.
const DEEPEST: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `struct a { int x; struct { int pad; int y; }; int bits:3; }`
    fn sample() -> Vec<u8> {
        let strings = b"\0a\0x\0pad\0y\0bits\0int\0";
        let name =
            |n: &[u8]| strings.windows(n.len() + 1).position(|w| w == [n, b"\0"].concat()).unwrap() as u32;
        let words = [
            // 1: int; 2: the structure without a name; 3: a.
            vec![name(b"int"), 1 << 24, 4, 32],
            vec![0, STRUCT << 24 | 2, 8, name(b"pad"), 1, 0, name(b"y"), 1, 32],
            vec![name(b"a"), STRUCT << 24 | 3, 16, name(b"x"), 1, 0, 0, 2, 32, name(b"bits"), 1, 97],
        ];
        let types: Vec<u8> = words.concat().into_iter().flat_map(u32::to_le_bytes).collect();
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for word in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
            bytes.extend(word.to_le_bytes());
        }
        [bytes, types, strings.to_vec()].concat()
    }

    #[test]
    fn fields_are_found_through_structures_without_a_name() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.offset_of("a", "x"), Some(0));
        assert_eq!(btf.offset_of("a", "y"), Some(8), "4 into the inner one, which is 4 into a");
        assert_eq!(btf.offset_of("a", "bits"), None, "no byte of its own");
        assert_eq!(btf.offset_of("a", "z"), None);
        assert_eq!(btf.offset_of("int", "x"), None);
    }

    proptest! {
        #[test]
        fn nonsense_yields_nothing_and_does_not_panic(
            at in 0usize..200, byte: u8, cut in 0usize..220, tail in prop::collection::vec(any::<u8>(), 0..40)
        ) {
            let mut bytes = sample();
            bytes.truncate(cut);
            if let Some(b) = bytes.get_mut(at) {
                *b = byte;
            }
            bytes.extend(tail);
            if let Some(btf) = Btf::parse(&bytes) {
                _ = btf.offset_of("a", "y");
            }
        }
    }
}
