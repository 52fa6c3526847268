//! Torn landings: whatever part of a record has landed over an old one, only the whole is accepted.

use pmemha::log::scan::{Scan, scan_bytes, scan_ring};
use pmemha::log::{Appender, Consumer, LogRegion, LogSpec};
use pmemha::region::memory::SharedMem;
use pmemha::types::{Generation, Lsn, RegionId};

const RING: u64 = 1 << 16;

/// The bytes of a sealed record of one line at the start of lap `lap`.
fn record(lap: u64, fill: u8) -> Vec<u8> {
    let first_lsn = Lsn(lap * RING);
    let spec = LogSpec { ring_bytes: RING, first_lsn, generation: Generation(7), ..LogSpec::default() };
    let (_fd, log) = LogRegion::create(&spec).unwrap();
    let app = Appender::attach(log.clone(), 1).unwrap();
    #[repr(align(64))]
    struct Line([u8; 64]);
    let line = Line([fill; 64]);
    // SAFETY: the line is readable and aligned as its offset is.
    unsafe { app.capture(RegionId(1), 4096, line.0.as_ptr(), 64) };
    app.drain();
    Consumer::new(log.clone(), first_lsn).next_batch(u64::MAX).unwrap().unwrap();
    let mut bytes = vec![0; 96];
    log.ring().read(0, &mut bytes);
    bytes
}

#[test]
fn of_all_subsets_of_words_over_an_old_record_only_the_whole_is_accepted() {
    for (old, new) in
        [(record(1, 1), record(2, 2)), (record(1, 3), record(2, 3)), (vec![0; 96], record(2, 0))]
    {
        let landing = SharedMem::anonymous(RING as usize).unwrap();
        let words = new.len() / 8;
        let mut complete = 0;
        for subset in 0u32..1 << words {
            let mut bytes = old.clone();
            for word in (0..words).filter(|w| subset & 1 << w != 0) {
                bytes[word * 8..][..8].copy_from_slice(&new[word * 8..][..8]);
            }
            landing.write(0, &bytes);
            let whole = bytes == new;
            complete += u32::from(whole);
            let ring = scan_ring(&landing, Generation(7), Lsn(2 * RING));
            assert_eq!(matches!(ring, Scan::Record(_)), whole, "subset {subset:#b}: {ring:?}");
            let slice = scan_bytes(&bytes, Lsn(2 * RING), Generation(7), Lsn(2 * RING));
            assert_eq!(matches!(slice, Scan::Record(_)), whole, "subset {subset:#b}: {slice:?}");
        }
        assert!(complete >= 1);
    }
}

#[test]
fn another_generation_is_not_accepted() {
    let bytes = record(2, 5);
    assert!(matches!(scan_bytes(&bytes, Lsn(2 * RING), Generation(7), Lsn(2 * RING)), Scan::Record(_)));
    assert_eq!(scan_bytes(&bytes, Lsn(2 * RING), Generation(8), Lsn(2 * RING)), Scan::NothingYet);
}
