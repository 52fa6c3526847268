//! A program that is killed: what it stored and did not record is noted, for whoever comes after it.

use pmemha::log::Debt;

use crate::programs::PYTHON;
use crate::rig::Rig;

/// Maps the file, stores to it, does `then`, and is killed; whether that left something behind which no record tells of.
fn leaves_something(then: &str) -> bool {
    let rig = Rig::new();
    let script = format!(
        "import ctypes, mmap, os\n\
         f = open('file', 'w+b')\n\
         f.truncate(8192)\n\
         m = mmap.mmap(f.fileno(), 8192)\n\
         m[0] = 1\n\
         {then}\n\
         os.kill(os.getpid(), 9)\n"
    );
    let ended = rig.command(PYTHON).arg("-c").arg(script).output().expect("python starts");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(said.is_empty(), "{said}");
    let log = rig.agent.log();
    for index in 0..log.spec().appenders as u16 {
        if let Some(owner) = log.owner(index).filter(|owner| owner.confirmed_dead()) {
            log.reclaim_cell(index, &owner);
        }
    }
    log.owes(Debt::Remains)
}

#[test]
fn before_its_msync_it_leaves_a_note_of_its_stores() {
    assert!(leaves_something("pass"));
    assert!(leaves_something("m.flush(); m[1] = 1"), "there may be more after an msync");
}

#[test]
fn after_its_own_flushes_it_leaves_nothing_that_a_power_cut_would_not_take() {
    let flush = "at = ctypes.addressof(ctypes.c_char.from_buffer(m)); \
                 ctypes.CDLL('libpmem.so.1').pmem_persist(ctypes.c_void_p(at), ctypes.c_size_t(8))";
    assert!(!leaves_something(flush));
}

#[test]
fn after_its_last_mapping_is_gone_it_leaves_nothing() {
    assert!(!leaves_something("m.close()"), "what was stored is recorded when the mapping goes");
    assert!(!leaves_something("os.unlink('file')"), "a file that is gone needs no copy");
    let another = "n = mmap.mmap(f.fileno(), 8192); m.close()";
    assert!(leaves_something(another), "there is another one");
    assert!(!leaves_something(&format!("{another}; n.close()")));
    assert!(leaves_something("m.close(); m = mmap.mmap(f.fileno(), 8192); m[0] = 2"), "there is one again");
    assert!(leaves_something("m.resize(16384); m[0] = 2"), "it has moved");
    let twice = "m.close(); m = mmap.mmap(f.fileno(), 8192); m.close(); m = mmap.mmap(f.fileno(), 8192)";
    assert!(leaves_something(twice));
}

#[test]
fn of_its_own_will_it_leaves_nothing() {
    assert!(!leaves_something("os._exit(0)"));
}
