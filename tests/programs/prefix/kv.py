"""Transactions on LMDB and on sqlite, with contents that a checker can compute again.

    kv.py run ENGINE DB COUNT SEED        do transactions 1, 2, 3, ... COUNT
    kv.py cut DB                          cut the log at each line on stdin
    kv.py check-many ENGINE SEED          check databases named on stdin, one a line; answers a line "ok FOUND"
                                          (the last transaction that is in it) or "bad REASON" each

ENGINE is lmdb, lmdb-writemap, sqlite, or sqlite-cut, where a second process cuts the write-ahead log. `run` notes in the
file WORKLOAD_WITNESS what the word WORKLOAD_CLOCK (FILE@AT) said when a transaction had been committed, as three 64-bit
words: 0, the transaction, the clock.
"""

import mmap
import os
import random
import sqlite3
import struct
import subprocess
import sys

import lmdb

KEYS = 150
COUNT = b"count"


def steps(seed, n):
    """What transaction n does: pairs of a key and its new value, None where the key goes."""
    chance = random.Random(seed << 32 | n)
    for _ in range(chance.randrange(1, 6)):
        key = b"%06d" % chance.randrange(KEYS)
        if chance.randrange(4) == 0:
            yield key, None
        else:
            yield key, bytes([n % 251]) * chance.choice((8, 60, 500, 3000, 9000))


class Model:
    """The contents after a transaction."""

    def __init__(self, seed):
        self.seed, self.at, self.content = seed, 0, {}

    def after(self, n):
        if n < self.at:
            self.__init__(self.seed)
        while self.at < n:
            self.at += 1
            for key, value in steps(self.seed, self.at):
                if value is None:
                    self.content.pop(key, None)
                else:
                    self.content[key] = value
        return self.content


class Lmdb:
    WRITEMAP = False

    def __init__(self, path):
        self.env = lmdb.open(path, subdir=False, map_size=8 << 20, writemap=self.WRITEMAP, lock=False)

    def commit(self, n, changes):
        with self.env.begin(write=True) as txn:
            for key, value in changes:
                if value is None:
                    txn.delete(key)
                else:
                    txn.put(key, value)
            txn.put(COUNT, b"%d" % n)

    def read(self):
        with self.env.begin() as txn:
            content = dict(txn.cursor())
        return int(content.pop(COUNT, 0)), content

    def close(self):
        self.env.close()


class LmdbWritemap(Lmdb):
    WRITEMAP = True


class Sqlite:
    def __init__(self, path):
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("pragma journal_mode = wal")
        self.db.execute("pragma synchronous = full")
        # Often, so that prefixes end in the middle of a checkpoint and of a log that begins anew.
        self.db.execute("pragma wal_autocheckpoint = 25")

    def commit(self, n, changes):
        if n == 1:
            self.db.execute("begin")
            self.db.execute("create table kv (k blob primary key, v blob)")
            self.db.execute("create index sizes on kv (length(v))")
            self.db.execute("create table done (n integer)")
            self.db.execute("insert into done values (0)")
            self.db.execute("commit")
        self.db.execute("begin")
        for key, value in changes:
            if value is None:
                self.db.execute("delete from kv where k = ?", (key,))
            else:
                self.db.execute("insert or replace into kv values (?, ?)", (key, value))
        self.db.execute("update done set n = ?", (n,))
        self.db.execute("commit")

    def read(self):
        (said,) = self.db.execute("pragma integrity_check").fetchone()
        if said != "ok":
            raise ValueError("integrity_check: " + said)
        if not self.db.execute("select 1 from sqlite_master").fetchone():
            return 0, {}
        (n,) = self.db.execute("select n from done").fetchone()
        return n, dict(self.db.execute("select k, v from kv"))

    def close(self):
        self.db.close()


class SqliteCut(Sqlite):
    """Another process brings the log into the database and cuts it to nothing, every few transactions."""

    EVERY = 7

    def __init__(self, path):
        super().__init__(path)
        self.db.execute("pragma wal_autocheckpoint = 0")
        self.path, self.other = path, None

    def commit(self, n, changes):
        super().commit(n, changes)
        if n % self.EVERY == 0:
            self.cut()

    def cut(self):
        if self.other is None:
            command = [sys.executable, __file__, "cut", self.path]
            self.other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.other.stdin.write("cut\n")
        self.other.stdin.flush()
        if self.other.stdout.readline() != "(0, 0, 0)\n" or os.path.getsize(self.path + "-wal") != 0:
            raise ValueError("the log was not cut")

    def close(self):
        if self.other is not None:
            self.other.communicate()
        super().close()


def cut(path):
    db = sqlite3.connect(path, isolation_level=None)
    for _ in sys.stdin:
        print(db.execute("pragma wal_checkpoint(truncate)").fetchone(), flush=True)


ENGINES = {"lmdb": Lmdb, "lmdb-writemap": LmdbWritemap, "sqlite": Sqlite, "sqlite-cut": SqliteCut}


def run(engine, path, count, seed):
    file, at = os.environ["WORKLOAD_CLOCK"].rsplit("@", 1)
    page, word = int(at) // mmap.PAGESIZE * mmap.PAGESIZE, int(at) % mmap.PAGESIZE
    fd = os.open(file, os.O_RDONLY)
    clock = mmap.mmap(fd, mmap.PAGESIZE, prot=mmap.PROT_READ, offset=page)
    with open(os.environ["WORKLOAD_WITNESS"], "wb") as witness:
        db = engine(path)
        for n in range(1, count + 1):
            db.commit(n, steps(seed, n))
            (now,) = struct.unpack_from("<Q", clock, word)
            witness.write(struct.pack("<QQQ", 0, n, now))
        db.close()


def check(engine, path, model):
    # Before the file was made, nothing can have been committed: its first page is what makes it a database.
    if not os.path.exists(path):
        return 0
    with open(path, "rb") as file:
        if not any(file.read(4096)):
            return 0
    db = engine(path)
    try:
        n, content = db.read()
    finally:
        db.close()
    if n > 1 << 20:
        raise ValueError(f"transaction {n} is beyond all that were made")
    if content != model.after(n):
        raise ValueError(f"not the content after transaction {n}")
    return n


def check_many(engine, seed):
    model = Model(seed)
    for line in sys.stdin:
        try:
            said = f"ok {check(engine, line.strip(), model)}"
        except Exception as wrong:
            said = f"bad {type(wrong).__name__} {wrong}".replace("\n", " ")
        print(said, flush=True)


if sys.argv[1] == "run":
    run(ENGINES[sys.argv[2]], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
elif sys.argv[1] == "cut":
    cut(sys.argv[2])
else:
    check_many(ENGINES[sys.argv[2]], int(sys.argv[3]))
