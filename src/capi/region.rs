//! Protecting files and recording what was stored in them.

use std::ffi::{OsStr, c_char, c_void};
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::guard::{Failure, guard, put};
use super::handles::{Handle, Handles, InUse};
use super::order::publish;
use super::session::{find, is_open, pmemha_session};
use super::status::pmemha_rc::{self, *};
use crate::region::flush::{flush_lines, msync};
use crate::region::mapped_file::{FlushKind, MappedFile};
use crate::session::local_flush::LocalFlush;
use crate::session::{Protection, Session};
use crate::types::{LINE, RegionId};

/// A protected file, or a protected mapping of one. Opaque. Lives as long as its session.
///
/// May be used by all threads at once.
pub struct pmemha_region;

/// Protects a file by its path.
///
/// @session the session
/// @path    the file; it exists
/// @len     bytes from its start that are protected; 0: as many as it has now
/// @region  where the handle goes; set to NULL on failure
///
/// The agent gets a descriptor, not the path, and copies what the file holds to the destination while the program
/// runs. From here on the program records its stores with pmemha_append(). Protecting a file again is fine and
/// yields a handle of the same region.
///
/// Returns #PMEMHA_OK, #PMEMHA_E_NO_AGENT, #PMEMHA_E_REFUSED, #PMEMHA_E_REPLACED, #PMEMHA_E_LIMIT (4096 handles a process),
/// #PMEMHA_E_SYSTEM (the file cannot be opened), #PMEMHA_E_CLOSED, #PMEMHA_E_INVAL. Waits for the agent no longer than
/// five seconds. Any thread.
///
/// # Safety
/// As in C: pointers are NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmemha_protect_path(
    session: *mut pmemha_session,
    path: *const c_char,
    len: u64,
    region: *mut *mut pmemha_region,
) -> pmemha_rc {
    let make = |live: &Session| {
        Failure::unless_null("path", path)?;
        // SAFETY: not NULL, so a string as the caller promises.
        let name = unsafe { std::ffi::CStr::from_ptr(path) };
        let name = std::path::Path::new(OsStr::from_bytes(name.to_bytes()));
        let file = File::options().read(true).write(true).open(name).or_else(|_| File::open(name));
        let file =
            file.map_err(|e| Failure::new(PMEMHA_E_SYSTEM, format!("cannot open {}: {e}", name.display())))?;
        let protection = live.protect(file.as_fd(), len, true)?;
        Ok((protection, None))
    };
    // SAFETY: `region` is as the caller promises.
    unsafe { protect(session, region, make) }
}

/// Protects the file behind a range of addresses.
///
/// @session the session
/// @addr    the range's first byte, within a mapping of the file
/// @len     bytes of the range; not 0
/// @region  where the handle goes; set to NULL on failure
///
/// The range is a shared mapping of one file (DAX or not, tmpfs, hugetlbfs, devdax), or a part of one; how it was made does
/// not matter, so a pool that libpmemobj has opened will do. The file is protected from its start to the range's
/// end. Stores to the range are recorded with pmemha_flush() or pmemha_persist(). The mapping must stay while the region is used;
/// after munmap() or mremap() protect anew.
///
/// Returns what pmemha_protect_path() does, and #PMEMHA_E_NOT_A_FILE (anonymous or private memory, or a file that has been
/// removed), #PMEMHA_E_RANGE (not mapped throughout, or by several files: protect each by itself), #PMEMHA_E_INVAL also where
/// PMEMHA_LOCAL_FLUSH is neither `auto` nor `always`. Any thread.
///
/// # Safety
/// As in C: `region` is NULL or valid. The range may be anything.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmemha_protect_range(
    session: *mut pmemha_session,
    addr: *const c_void,
    len: usize,
    region: *mut *mut pmemha_region,
) -> pmemha_rc {
    let make = |live: &Session| {
        Failure::unless_null("addr", addr)?;
        let range = addresses(addr, len)?;
        if range.is_empty() {
            return Err(Failure::invalid("len is 0"));
        }
        let local_flush = LocalFlush::from_env()?;
        let mapped = MappedFile::behind(range.clone())?;
        let protection = live.protect(mapped.file.as_fd(), mapped.offset + len as u64, true)?;
        let mapping = Mapping { range, offset: mapped.offset, flush: local_flush.applied_to(mapped.flush) };
        Ok((protection, Some(mapping)))
    };
    // SAFETY: `region` is as the caller promises.
    unsafe { protect(session, region, make) }
}

/// Records stores to a protected mapping and flushes them locally: what pmem_flush() does, and the record.
///
/// @region of pmemha_protect_range()
/// @addr   first byte that was stored to, within the range
/// @len    how many bytes; 0 is nothing
///
/// To be called *instead of* pmem_flush(), after the stores. The content of the cache lines that hold the bytes is recorded
/// first, then the lines are flushed (CLWB, else CLFLUSHOPT, else CLFLUSH). Where the mapping is one of the page cache, the
/// pages are written back by msync(), which takes its time. Lines on tmpfs or hugetlbfs are recorded only, since a flush makes
/// nothing there more durable; PMEMHA_LOCAL_FLUSH=always has them flushed. Nothing is ordered or published yet: pmemha_drain()
/// does that.
/// No system call, no lock and no allocation except as said.
///
/// Returns #PMEMHA_OK, #PMEMHA_E_RANGE (nothing was done), #PMEMHA_E_CLOSED, #PMEMHA_E_INVAL, #PMEMHA_E_LIMIT (a forked child for which
/// the log had no room: flushed and not recorded), #PMEMHA_E_SYSTEM (msync() failed: recorded and not flushed). Any thread.
///
/// # Safety
/// The mapping that was protected still stands.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmemha_flush(
    region: *mut pmemha_region,
    addr: *const c_void,
    len: usize,
) -> pmemha_rc {
    // SAFETY: as the caller promises.
    guard(|| unsafe { capture_and_flush(&*find_region(region)?, addr, len) })
}

/// Makes stores to a protected mapping persistent here and publishes them: pmemha_flush() and pmemha_drain() in one.
///
/// @region of pmemha_protect_range()
/// @addr   first byte that was stored to, within the range
/// @len    how many bytes
/// @lsn    if not NULL: is set to the LSN that pmemha_wait() takes
///
/// Returns what these two return. Any thread.
///
/// # Safety
/// The mapping that was protected still stands; `lsn` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmemha_persist(
    region: *mut pmemha_region,
    addr: *const c_void,
    len: usize,
    lsn: *mut u64,
) -> pmemha_rc {
    guard(|| {
        let region = find_region(region)?;
        // SAFETY: as the caller promises.
        unsafe { capture_and_flush(&region, addr, len)? };
        let published = publish(&region.session);
        // SAFETY: NULL or valid, as the caller promises.
        unsafe { put(lsn, published.0) };
        Ok(())
    })
}

/// Records stores without flushing them: for programs that flush by other means.
///
/// @region of either protect function
/// @offset where in the file the bytes are
/// @addr   where they are mapped; equal to the offset modulo 64, as every mapping is
/// @len    how many bytes; 0 is nothing
///
/// To be called after the stores and *before* the program's own flush, msync() or the like: a flush may evict the lines, and
/// a record must not be older than what it stands for. Whole cache lines are recorded, so the lines at both edges are
/// read as far as they reach. Nothing is ordered or published yet: pmemha_drain() does that, after the program's own
/// flush. No system call, no lock, no allocation.
///
/// Returns #PMEMHA_OK, #PMEMHA_E_RANGE, #PMEMHA_E_CLOSED, #PMEMHA_E_INVAL, #PMEMHA_E_LIMIT (a forked child for which the log had no
/// room). Any thread.
///
/// # Safety
/// The bytes are mapped.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmemha_append(
    region: *mut pmemha_region,
    offset: u64,
    addr: *const c_void,
    len: usize,
) -> pmemha_rc {
    guard(|| {
        let region = find_region(region)?;
        Failure::unless_null("addr", addr)?;
        addresses(addr, len)?;
        if offset % LINE as u64 != (addr.addr() % LINE) as u64 {
            let text =
                format!("address {addr:p} cannot be a mapping of offset {offset}: they differ modulo 64");
            return Err(Failure::invalid(text));
        }
        region.check(offset, len)?;
        // SAFETY: the lines are mapped as the caller promises; the two are equal modulo 64.
        unsafe { region.capture(offset, addr.cast(), len) }
    })
}

/// Ends the handles of a session that is being closed.
pub(super) fn close_regions_of(session: Handle) {
    for handle in REGIONS.live() {
        if REGIONS.get(handle).is_some_and(|r| r.owner == session) {
            REGIONS.close(handle);
        }
    }
}

struct Region {
    owner: Handle,
    session: Arc<Session>,
    id: RegionId,
    /// Bytes protected, from the file's start.
    len: u64,
    mapping: Option<Mapping>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mapping {
    range: Range<usize>,
    /// Offset in the file of the range's first byte.
    offset: u64,
    flush: FlushKind,
}

impl Region {
    fn check(&self, offset: u64, len: usize) -> Result<(), Failure> {
        if offset.checked_add(len as u64).is_some_and(|end| end <= self.len) {
            return Ok(());
        }
        let text = format!("{len} bytes at offset {offset}; the region has {} bytes", self.len);
        Err(Failure::new(PMEMHA_E_RANGE, text))
    }

    /// # Safety
    /// As for `Appender::capture`.
    unsafe fn capture(&self, offset: u64, src: *const u8, len: usize) -> Result<(), Failure> {
        if !self.session.records() {
            let text =
                "this process was forked when the log had no room for another writer: nothing is recorded";
            return Err(Failure::new(PMEMHA_E_LIMIT, text));
        }
        if len > 0 {
            // SAFETY: as the caller vouches.
            unsafe { self.session.appender().capture(self.id, offset, src, len) };
        }
        Ok(())
    }
}

/// # Safety
/// The region's mapping still stands.
unsafe fn capture_and_flush(region: &Region, addr: *const c_void, len: usize) -> Result<(), Failure> {
    let Some(mapping) = &region.mapping else {
        let text = "the region was protected by path, so its addresses are not known: \
                    use pmemha_append(), or pmemha_protect_range()";
        return Err(Failure::invalid(text));
    };
    Failure::unless_null("addr", addr)?;
    let bytes = addresses(addr, len)?;
    if bytes.start < mapping.range.start || bytes.end > mapping.range.end {
        let text = format!("{len} bytes at {addr:p}; the region is mapped at {:#x?}", mapping.range);
        return Err(Failure::new(PMEMHA_E_RANGE, text));
    }
    if len == 0 {
        return Ok(());
    }
    let offset = mapping.offset + (bytes.start - mapping.range.start) as u64;
    // SAFETY: within the mapping, which stands as the caller promises; page-aligned, so equal modulo 64 to its offset.
    let recorded = unsafe { region.capture(offset, addr.cast(), len) };
    match mapping.flush {
        // SAFETY: as above.
        FlushKind::Lines => unsafe { flush_lines(bytes) },
        FlushKind::Dram => {}
        FlushKind::Msync => msync(bytes)
            .map_err(|e| Failure::new(PMEMHA_E_SYSTEM, format!("msync of {len} bytes at {addr:p}: {e}")))?,
    }
    recorded
}

fn addresses(addr: *const c_void, len: usize) -> Result<Range<usize>, Failure> {
    let end = addr.addr().checked_add(len);
    let end = end.ok_or_else(|| Failure::invalid(format!("{len} bytes at {addr:p} wrap around")))?;
    Ok(addr.addr()..end)
}

fn find_region(region: *mut pmemha_region) -> Result<InUse<'static, Region>, Failure> {
    Failure::unless_null("region", region)?;
    REGIONS.get(region.addr()).ok_or_else(|| {
        let text = "the region's session is closed, or the pointer never was a region";
        Failure::new(PMEMHA_E_CLOSED, text)
    })
}

/// Protects what `make` finds in the session, and puts a handle of it into `region`.
///
/// # Safety
/// `region` is NULL or valid.
unsafe fn protect(
    session: *mut pmemha_session,
    region: *mut *mut pmemha_region,
    make: impl FnOnce(&Session) -> Result<(Protection, Option<Mapping>), Failure>,
) -> pmemha_rc {
    guard(|| {
        Failure::unless_null("region", region)?;
        // SAFETY: not NULL, so valid as the caller promises.
        unsafe { put(region, std::ptr::null_mut()) };
        let live = find(session)?;
        let (protection, mapping) = make(&live)?;
        let handle = register(session.addr(), &live, protection, mapping)?;
        // SAFETY: as above.
        unsafe { put(region, std::ptr::without_provenance_mut(handle)) };
        Ok(())
    })
}

/// A handle for the region: the one that there is already, or a new one.
fn register(
    owner: Handle,
    session: &Arc<Session>,
    protection: Protection,
    mapping: Option<Mapping>,
) -> Result<Handle, Failure> {
    let Protection { region: id, len, lsn: _ } = protection;
    let same = |r: &Region| r.owner == owner && r.id == id && r.len == len && r.mapping == mapping;
    if let Some(handle) = REGIONS.live().find(|h| REGIONS.get(*h).is_some_and(|r| same(&r))) {
        return Ok(handle);
    }
    let region = Region { owner, session: session.clone(), id, len, mapping };
    let handle = REGIONS.insert(region).ok_or_else(|| {
        let text = format!("{MAX_REGIONS} region handles are in use: close the sessions that are done");
        Failure::new(PMEMHA_E_LIMIT, text)
    })?;
    // A close that ran meanwhile may have looked for regions before this one was there.
    if !is_open(owner) {
        REGIONS.close(handle);
        return Err(Failure::new(PMEMHA_E_CLOSED, "the session was closed meanwhile"));
    }
    Ok(handle)
}

/// Files and mappings that one process protects; poolsets have hundreds of parts at most.
const MAX_REGIONS: usize = 4096;

static REGIONS: Handles<Region, MAX_REGIONS> = Handles::new(0xa7);
