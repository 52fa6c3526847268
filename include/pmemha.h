/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * pmemha.h: protect persistent memory by a log that is shipped to another machine.
 *
 * Lengths and offsets are in bytes. Every function may be called from any thread unless it says otherwise;
 * none is for signal handlers, but pmemha_strstatus(). Functions return enum pmemha_rc; pmemha_errormsg() has
 * the words. See libpmemha(7).
 *
 * Generated from src/capi: do not edit.
 */

#ifndef PMEMHA_H
#define PMEMHA_H

#include <stddef.h>
#include <stdint.h>

/**
 * Version of this header. Within one major version programs keep working, compiled or not.
 */
#define PMEMHA_MAJOR_VERSION 0

/**
 * Raised when something is added.
 */
#define PMEMHA_MINOR_VERSION 1

/**
 * What a call returns. Anything but #PMEMHA_OK leaves a message in pmemha_errormsg().
 *
 * None of these means that the program should stop: its own persistent memory is as it was. They say how
 * far its protection goes.
 */
enum pmemha_rc {
  /**
   * Done.
   */
  PMEMHA_OK = 0,
  /**
   * An argument is NULL or out of range. A mistake in the program.
   */
  PMEMHA_E_INVAL = 1,
  /**
   * The handle was closed, or never was one of this kind. A mistake in the program.
   */
  PMEMHA_E_CLOSED = 2,
  /**
   * The bytes are not within the region. A mistake in the program.
   */
  PMEMHA_E_RANGE = 3,
  /**
   * Header and library do not fit together.
   */
  PMEMHA_E_VERSION = 4,
  /**
   * No agent answers on this machine. Appending and draining go on without it.
   */
  PMEMHA_E_NO_AGENT = 5,
  /**
   * The agent refused; the message has its words.
   */
  PMEMHA_E_REFUSED = 6,
  /**
   * The memory is no shared mapping of a file, so there is nothing that another machine could open.
   */
  PMEMHA_E_NOT_A_FILE = 7,
  /**
   * The agent has made another log for the group: what this program appends is not protected any more.
   */
  PMEMHA_E_REPLACED = 8,
  /**
   * The time given is over.
   */
  PMEMHA_E_TIMEOUT = 9,
  /**
   * The log overflowed; destinations are being brought up to date by a copy, and the time given is over.
   */
  PMEMHA_E_GAP = 10,
  /**
   * The LSN is not published: pmemha_drain() has not returned it.
   */
  PMEMHA_E_UNPUBLISHED = 11,
  /**
   * The group has no destination: nothing can be acknowledged.
   */
  PMEMHA_E_NO_DESTINATION = 12,
  /**
   * A limit is reached; the message names it.
   */
  PMEMHA_E_LIMIT = 13,
  /**
   * The operating system refused; the message has its words.
   */
  PMEMHA_E_SYSTEM = 14,
  /**
   * A defect of libpmemha.
   */
  PMEMHA_E_INTERNAL = 15,
};

/**
 * How far a record has come. Each level implies those before it.
 */
enum pmemha_level {
  /**
   * Published in this machine's log: survives the program.
   */
  PMEMHA_LEVEL_LOCAL = 0,
  /**
   * Arrived at a destination.
   */
  PMEMHA_LEVEL_RECEIVED = 1,
  /**
   * Survives the loss of this machine.
   */
  PMEMHA_LEVEL_DURABLE = 2,
  /**
   * Part of the destination's image, persistently.
   */
  PMEMHA_LEVEL_APPLIED = 3,
};

/**
 * The way to the destinations, as the agent sees it.
 */
enum pmemha_link {
  /**
   * No destination is configured.
   */
  PMEMHA_LINK_NONE = 0,
  /**
   * A destination is configured, and not connected.
   */
  PMEMHA_LINK_DOWN = 1,
  /**
   * A destination is connected and does not hold a complete image yet.
   */
  PMEMHA_LINK_SYNCING = 2,
  /**
   * A destination counts: the program is protected.
   */
  PMEMHA_LINK_COUNTING = 3,
};

/**
 * A protected file, or a protected mapping of one. Opaque. Lives as long as its session.
 *
 * May be used by all threads at once.
 */
struct pmemha_region;

/**
 * A session with the agent of this machine: one group, one log. Opaque.
 *
 * May be used by all threads at once. A child of fork() may go on using it: it then is a session of the child's own
 * (vfork() and posix_spawn() children must not). Not for signal handlers.
 */
struct pmemha_session;

/**
 * What pmemha_status() tells. LSNs are positions in the group's log, as pmemha_drain() returns them.
 */
struct pmemha_info {
  /**
   * Every record below this LSN is published: it survives this program.
   */
  uint64_t published;
  /**
   * Every record below has arrived at the destination.
   */
  uint64_t received;
  /**
   * Every record below survives the loss of this machine.
   */
  uint64_t durable;
  /**
   * Every record below is part of the destination's image.
   */
  uint64_t applied;
  /**
   * The group's generation: one more after each failover.
   */
  uint32_t generation;
  /**
   * 1 while the agent shows a pulse, else 0.
   */
  uint32_t agent_alive;
  /**
   * One of enum pmemha_link.
   */
  uint32_t link;
  /**
   * 1 while the log has overflowed and destinations are not yet brought up to date by a copy, else 0.
   */
  uint32_t gap;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Checks that the library found at run time fits the header compiled with.
 *
 * Call as `pmemha_check_version(PMEMHA_MAJOR_VERSION, PMEMHA_MINOR_VERSION)`. Returns #PMEMHA_OK, or
 * #PMEMHA_E_VERSION when the library is of another major version or older than the header. Any thread.
 */
enum pmemha_rc pmemha_check_version(unsigned int major,
                                    unsigned int minor);

/**
 * The name and meaning of a status, for example "PMEMHA_E_TIMEOUT: the time given is over".
 *
 * For any number; unknown ones are named so. The string is static. Any thread, signal handlers too.
 */
const char *pmemha_strstatus(int status);

/**
 * What the last call of this thread that failed had to say: what happened, to what, and what to do.
 *
 * Never NULL; an empty string before the first failure. Valid until the next call of this thread that fails. Each
 * thread has its own.
 */
const char *pmemha_errormsg(void);

/**
 * Opens a session with the agent of this machine.
 *
 * @socket  path of the agent's socket; NULL: environment variable PMEMHA_SOCKET, else /run/pmemha/pmemhad.sock
 * @group   name of the group; NULL: PMEMHA_GROUP, else the one that the agent's configuration has for this user
 * @session where the handle goes; set to NULL on failure
 *
 * Waits for the agent no longer than five seconds. A process needs one session; each takes address space for the
 * whole log. The environment is ignored in set-user-ID programs.
 *
 * Returns #PMEMHA_OK, #PMEMHA_E_NO_AGENT, #PMEMHA_E_REFUSED, #PMEMHA_E_LIMIT (64 sessions a process; writers of one log),
 * #PMEMHA_E_INVAL, #PMEMHA_E_VERSION, #PMEMHA_E_SYSTEM. Any thread.
 */
enum pmemha_rc pmemha_open(const char *socket,
                           const char *group,
                           struct pmemha_session **session);

/**
 * Closes a session and all its regions, and tells the agent that this is no failure.
 *
 * @session address of the handle, which is set to NULL; NULL, or the address of NULL, is fine
 *
 * What was appended before is still shipped, what was not drained included. Threads inside calls with the handle finish
 * them. A program that ends without closing counts as dead: where the configuration says so, that
 * means failover. Copies of the handle are refused from here on with #PMEMHA_E_CLOSED.
 *
 * Returns #PMEMHA_OK; #PMEMHA_E_NO_AGENT when the agent could not be told (the session is closed all the same);
 * #PMEMHA_E_CLOSED. Waits no longer than a second. Any thread; not in a handler of atexit() that may run while
 * other threads go on.
 */
enum pmemha_rc pmemha_close(struct pmemha_session **session);

/**
 * Tells how far the group's protection has come, from shared memory: no agent is asked, nothing waits.
 *
 * @session the session
 * @info    is filled
 * @size    sizeof(struct pmemha_info): a library that is newer fills no more than that
 *
 * Returns #PMEMHA_OK, #PMEMHA_E_INVAL, #PMEMHA_E_CLOSED. Any thread.
 */
enum pmemha_rc pmemha_status(struct pmemha_session *session,
                             struct pmemha_info *info,
                             size_t size);

/**
 * Asks the agent for its status: the JSON document that `pmemha status --json` prints, zero-terminated.
 *
 * @session the session
 * @buffer  where it goes; may be NULL if size is 0
 * @size    bytes of the buffer
 * @needed  if not NULL: is set to the bytes that the document takes, its final zero included
 *
 * Returns #PMEMHA_OK; #PMEMHA_E_RANGE when the buffer is too small (it then holds as much as fits, terminated);
 * #PMEMHA_E_NO_AGENT, #PMEMHA_E_REPLACED, #PMEMHA_E_REFUSED, #PMEMHA_E_INVAL, #PMEMHA_E_CLOSED. Waits for the agent no
 * longer than five seconds. Any thread.
 */
enum pmemha_rc pmemha_status_json(struct pmemha_session *session,
                                  char *buffer,
                                  size_t size,
                                  size_t *needed);

/**
 * Starts the last gasp of the session's group; returns once it has begun.
 *
 * The application, the caller included, is frozen; everything that is published goes to the destination, which then takes
 * over. For a program that knows of a failure before the agent does. `pmemha events` tells how it goes on.
 *
 * Returns #PMEMHA_OK, #PMEMHA_E_NO_AGENT, #PMEMHA_E_REFUSED (the agent's words say why), #PMEMHA_E_REPLACED, #PMEMHA_E_CLOSED,
 * #PMEMHA_E_INVAL. Waits for the agent no longer than five seconds. Any thread.
 */
enum pmemha_rc pmemha_last_gasp(struct pmemha_session *session);

/**
 * Protects a file by its path.
 *
 * @session the session
 * @path    the file; it exists
 * @len     bytes from its start that are protected; 0: as many as it has now
 * @region  where the handle goes; set to NULL on failure
 *
 * The agent gets a descriptor, not the path, and copies what the file holds to the destination while the program
 * runs. From here on the program records its stores with pmemha_append(). Protecting a file again is fine and
 * yields a handle of the same region.
 *
 * Returns #PMEMHA_OK, #PMEMHA_E_NO_AGENT, #PMEMHA_E_REFUSED, #PMEMHA_E_REPLACED, #PMEMHA_E_LIMIT (4096 handles a process),
 * #PMEMHA_E_SYSTEM (the file cannot be opened), #PMEMHA_E_CLOSED, #PMEMHA_E_INVAL. Waits for the agent no longer than
 * five seconds. Any thread.
 */
enum pmemha_rc pmemha_protect_path(struct pmemha_session *session,
                                   const char *path,
                                   uint64_t len,
                                   struct pmemha_region **region);

/**
 * Protects the file behind a range of addresses.
 *
 * @session the session
 * @addr    the range's first byte, within a mapping of the file
 * @len     bytes of the range; not 0
 * @region  where the handle goes; set to NULL on failure
 *
 * The range is a shared mapping of one file (DAX or not, tmpfs, hugetlbfs, devdax), or a part of one; how it was made does
 * not matter, so a pool that libpmemobj has opened will do. The file is protected from its start to the range's
 * end. Stores to the range are recorded with pmemha_flush() or pmemha_persist(). The mapping must stay while the region is used;
 * after munmap() or mremap() protect anew.
 *
 * Returns what pmemha_protect_path() does, and #PMEMHA_E_NOT_A_FILE (anonymous or private memory, or a file that has been
 * removed), #PMEMHA_E_RANGE (not mapped throughout, or by several files: protect each by itself), #PMEMHA_E_INVAL also where
 * PMEMHA_LOCAL_FLUSH is neither `auto` nor `always`. Any thread.
 */
enum pmemha_rc pmemha_protect_range(struct pmemha_session *session,
                                    const void *addr,
                                    size_t len,
                                    struct pmemha_region **region);

/**
 * Records stores to a protected mapping and flushes them locally: what pmem_flush() does, and the record.
 *
 * @region of pmemha_protect_range()
 * @addr   first byte that was stored to, within the range
 * @len    how many bytes; 0 is nothing
 *
 * To be called *instead of* pmem_flush(), after the stores. The content of the cache lines that hold the bytes is recorded
 * first, then the lines are flushed (CLWB, else CLFLUSHOPT, else CLFLUSH). Where the mapping is one of the page cache, the
 * pages are written back by msync(), which takes its time. Lines on tmpfs or hugetlbfs are recorded only, since a flush makes
 * nothing there more durable; PMEMHA_LOCAL_FLUSH=always has them flushed. Nothing is ordered or published yet: pmemha_drain()
 * does that.
 * No system call, no lock and no allocation except as said.
 *
 * Returns #PMEMHA_OK, #PMEMHA_E_RANGE (nothing was done), #PMEMHA_E_CLOSED, #PMEMHA_E_INVAL, #PMEMHA_E_LIMIT (a forked child for which
 * the log had no room: flushed and not recorded), #PMEMHA_E_SYSTEM (msync() failed: recorded and not flushed). Any thread.
 */
enum pmemha_rc pmemha_flush(struct pmemha_region *region,
                            const void *addr,
                            size_t len);

/**
 * Makes stores to a protected mapping persistent here and publishes them: pmemha_flush() and pmemha_drain() in one.
 *
 * @region of pmemha_protect_range()
 * @addr   first byte that was stored to, within the range
 * @len    how many bytes
 * @lsn    if not NULL: is set to the LSN that pmemha_wait() takes
 *
 * Returns what these two return. Any thread.
 */
enum pmemha_rc pmemha_persist(struct pmemha_region *region,
                              const void *addr,
                              size_t len,
                              uint64_t *lsn);

/**
 * Records stores without flushing them: for programs that flush by other means.
 *
 * @region of either protect function
 * @offset where in the file the bytes are
 * @addr   where they are mapped; equal to the offset modulo 64, as every mapping is
 * @len    how many bytes; 0 is nothing
 *
 * To be called after the stores and *before* the program's own flush, msync() or the like: a flush may evict the lines, and
 * a record must not be older than what it stands for. Whole cache lines are recorded, so the lines at both edges are
 * read as far as they reach. Nothing is ordered or published yet: pmemha_drain() does that, after the program's own
 * flush. No system call, no lock, no allocation.
 *
 * Returns #PMEMHA_OK, #PMEMHA_E_RANGE, #PMEMHA_E_CLOSED, #PMEMHA_E_INVAL, #PMEMHA_E_LIMIT (a forked child for which the log had no
 * room). Any thread.
 */
enum pmemha_rc pmemha_append(struct pmemha_region *region,
                             uint64_t offset,
                             const void *addr,
                             size_t len);

/**
 * Orders what was flushed and publishes what was recorded: what pmem_drain() does, and the publication.
 *
 * @session the session
 * @lsn     if not NULL: is set to the LSN that pmemha_wait() takes
 *
 * To be called *instead of* pmem_drain(). Everything that was flushed or appended before, by any thread whose call had
 * returned, is below the LSN: it survives this program at once, and the loss of this machine as soon as
 * pmemha_wait() says so. A failover shows all of it or, in the order of the records, a first part of it.
 *
 * Does not wait for a network, unless the group's configuration sets a commit level: then it waits for
 * that level, no longer than the configured time, and returns #PMEMHA_OK in either case.
 *
 * Returns #PMEMHA_OK, #PMEMHA_E_CLOSED, #PMEMHA_E_INVAL. Any thread.
 */
enum pmemha_rc pmemha_drain(struct pmemha_session *session,
                            uint64_t *lsn);

/**
 * Waits until everything below an LSN has come as far as a level.
 *
 * @session    the session
 * @lsn        of pmemha_drain() or pmemha_persist()
 * @level      one of enum pmemha_level
 * @timeout_ms milliseconds; 0: only look; negative: without a limit
 *
 * Where it cannot succeed it does not wait: #PMEMHA_E_NO_AGENT while the agent has no pulse, #PMEMHA_E_NO_DESTINATION,
 * #PMEMHA_E_UNPUBLISHED for an LSN that nobody drained. Otherwise #PMEMHA_OK, #PMEMHA_E_TIMEOUT, #PMEMHA_E_GAP, #PMEMHA_E_CLOSED,
 * #PMEMHA_E_INVAL. After a failure the data is as safe as before the call, and waiting again is fine. Any thread; a
 * session that is closed meanwhile is waited for to the end.
 */
enum pmemha_rc pmemha_wait(struct pmemha_session *session,
                           uint64_t lsn,
                           int level,
                           int timeout_ms);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* PMEMHA_H */
