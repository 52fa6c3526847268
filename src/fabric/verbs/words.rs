//! What two ends say to each other over the control connection once the queue pairs have been introduced: eight bytes,
//! and never more than two of them.

/// Bytes of a [`Word`].
pub const WORD: usize = 8;

const FRAME: [u8; 7] = *b"PMHAVW\x01";

/// A word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// My queue pair is ready to receive: the first word of the connecting side.
    Ready,
    /// Your access is over; nothing follows.
    Revoked,
    /// My adapter refused a request of yours; nothing follows.
    Refused,
}

impl Word {
    /// As it is sent.
    pub fn encode(self) -> [u8; WORD] {
        let mut bytes = [0; WORD];
        bytes[..FRAME.len()].copy_from_slice(&FRAME);
        bytes[FRAME.len()] = match self {
            Word::Ready => 1,
            Word::Revoked => 2,
            Word::Refused => 3,
        };
        bytes
    }

    /// What came, if it is a word.
    pub fn decode(bytes: [u8; WORD]) -> Option<Word> {
        [Word::Ready, Word::Revoked, Word::Refused].into_iter().find(|word| word.encode() == bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_golden_bytes_and_nothing_else_is_one() {
        assert_eq!(&Word::Revoked.encode(), b"PMHAVW\x01\x02");
        for word in [Word::Ready, Word::Revoked, Word::Refused] {
            assert_eq!(Word::decode(word.encode()), Some(word));
        }
        assert_eq!(Word::decode(*b"PMHAVW\x01\x04"), None);
        assert_eq!(Word::decode(*b"PMHAVW\x02\x01"), None);
    }
}
