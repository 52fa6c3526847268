//! Real programs, unmodified.

use std::path::Path;

use pmemha::session::wire::Request;
use pmemha_testkit::programs::{workload, write_poolset};

use crate::rig::Rig;

pub const PYTHON: &str = "/usr/bin/python3";

fn workload_survives(mode: &str) {
    let rig = Rig::new();
    let (pool, acks) = (rig.path("file"), rig.path("acks"));
    let mut run = rig.command(workload());
    rig.finish(run.arg("run").arg(mode).arg(&pool).arg(&acks).arg("200"));
    // The image, put where the pool was, must be one that the program's own checker accepts.
    let image = rig.agent.image(&pool);
    assert!(!rig.agent.log().is_ahead(), "the ring was too small for this test");
    let restored = rig.path("restored");
    std::fs::write(&restored, image).unwrap();
    check(mode, &restored, &acks);
}

/// The program's own checker accepts what was restored.
fn check(mode: &str, restored: &Path, acks: &Path) {
    let checked = std::process::Command::new(workload())
        .env("PMEM_IS_PMEM_FORCE", "1")
        .args(["check", mode])
        .arg(restored)
        .arg(acks)
        .output()
        .unwrap();
    let said = [checked.stdout, checked.stderr].concat();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn libpmemobj_on_a_poolset() {
    let rig = Rig::new();
    let (set, restored, acks) = (rig.path("set.tmp"), rig.path("restored.tmp"), rig.path("acks"));
    let parts = write_poolset(&set, &rig.path(""));
    rig.finish(rig.command(workload()).args(["run", "tx"]).arg(&set).arg(&acks).arg("200"));
    let elsewhere = tempfile::tempdir().unwrap();
    for (part, copy) in parts.iter().zip(write_poolset(&restored, elsewhere.path())) {
        std::fs::write(copy, rig.agent.image(part)).unwrap();
    }
    check("tx", &restored, &acks);
}

#[test]
fn lmdb_through_a_writable_map() {
    lmdb("True");
}

#[test]
fn lmdb_through_writes() {
    lmdb("False");
}

fn lmdb(writemap: &str) {
    let rig = Rig::new();
    let script = format!(
        "import lmdb\n\
         e = lmdb.open('db', subdir=False, map_size=8<<20, writemap={writemap}, lock=False)\n\
         for i in range(200):\n\
         \x20   with e.begin(write=True) as t: t.put(b'%06d' % i, b'v' * (i % 500))\n"
    );
    rig.finish(rig.command(PYTHON).arg("-c").arg(script));
    rig.assert_same("db");
}

#[test]
fn sqlite_with_a_write_ahead_log() {
    sqlite("wal");
}

#[test]
fn sqlite_with_a_rollback_journal() {
    sqlite("delete");
}

fn sqlite(mode: &str) {
    let rig = Rig::new();
    let script = format!(
        "import sqlite3, os\n\
         c = sqlite3.connect('db', isolation_level=None)\n\
         c.execute('pragma journal_mode={mode}')\n\
         c.execute('create table t (k integer primary key, v text)')\n\
         for i in range(100): c.execute('insert into t values (?, ?)', (i, 'v' * (i % 700)))\n\
         c.execute('delete from t where k % 3 = 0')\n\
         os._exit(0)\n"
    );
    rig.finish(rig.command(PYTHON).arg("-c").arg(script));
    rig.assert_same("db");
    if mode == "wal" {
        rig.assert_same("db-wal");
    } else {
        assert_eq!(rig.agent.names(), [rig.path("db").to_string_lossy()], "the journal is gone");
        let released = |r: &Request| matches!(r, Request::Release { .. });
        let count = rig.agent.requests().iter().filter(|r| released(r)).count();
        assert!(count >= 100, "only {count} journals' numbers were given back");
    }
}

#[test]
fn sqlite_with_a_log_that_another_process_cuts() {
    let rig = Rig::new();
    let script = "import os, sqlite3, subprocess, sys\n\
         c = sqlite3.connect('db', isolation_level=None)\n\
         c.execute('pragma journal_mode=wal')\n\
         c.execute('pragma synchronous=full')\n\
         c.execute('create table t (k integer primary key, v text)')\n\
         cut = 'import sqlite3; print(sqlite3.connect(\"db\").execute(\"pragma wal_checkpoint(truncate)\").fetchone())'\n\
         for i in range(3):\n\
         \x20   for k in range(50): c.execute('insert into t values (null, ?)', ('v' * 700,))\n\
         \x20   assert os.path.getsize('db-wal') > 50 * 4096\n\
         \x20   subprocess.run([sys.executable, '-c', cut], check=True)\n\
         \x20   assert os.path.getsize('db-wal') == 0\n\
         \x20   c.execute('insert into t values (null, ?)', ('after',))\n\
         os._exit(0)\n";
    rig.finish(rig.command(PYTHON).arg("-c").arg(script));
    rig.assert_same("db");
    rig.assert_same("db-wal");
}

#[test]
fn libpmem_loaded_late_and_locally_by_python() {
    let rig = Rig::new();
    let script = "import ctypes\n\
         p = ctypes.CDLL('libpmem.so.1', mode=ctypes.RTLD_LOCAL)\n\
         p.pmem_map_file.restype = ctypes.c_void_p\n\
         n, f = ctypes.c_size_t(), ctypes.c_int()\n\
         a = p.pmem_map_file(b'file', ctypes.c_size_t(1 << 20), 1, 0o600, ctypes.byref(n), ctypes.byref(f))\n\
         ctypes.memset(a + 100, 7, 5000)\n\
         p.pmem_persist(ctypes.c_void_p(a + 100), ctypes.c_size_t(5000))\n";
    rig.finish(rig.command(PYTHON).arg("-c").arg(script));
    rig.assert_same("file");
    assert_eq!(rig.agent.image(&rig.path("file"))[100..5100], [7; 5000]);
}

#[test]
fn fio_through_libpmem_and_through_mmap() {
    for engine in ["libpmem", "mmap"] {
        let rig = Rig::new();
        let file = rig.path("file");
        let mut fio = rig.command("fio");
        fio.args(["--name=j", "--rw=randwrite", "--bs=4k", "--size=2m", "--fsync=16", "--thread"]);
        fio.arg(format!("--ioengine={engine}")).arg(format!("--filename={}", file.display()));
        if engine == "libpmem" {
            fio.args(["--direct=1", "--sync=1"]);
        }
        rig.finish(&mut fio);
        rig.assert_same("file");
    }
}

macro_rules! workloads {
    ($($name:ident = $mode:literal;)*) => { $(#[test] fn $name() { workload_survives($mode) })* };
}

workloads! {
    libpmemobj_transactions = "tx";
    libpmemobj_atomic_api = "atomic";
    libpmemobj_copy_flags = "memcpy";
    libpmemobj_huge_object = "huge";
    libpmemobj_threads = "threads";
    libpmem_raw_persist = "raw";
}
