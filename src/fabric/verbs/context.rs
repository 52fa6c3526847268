//! An opened adapter: what it can do, its ports, and the events it reports by itself.

use std::ffi::{CString, c_int};
use std::io;
use std::mem::{MaybeUninit, offset_of, zeroed};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use super::VerbsError;
use super::adapter::{SYSFS_VERBS, Seat};
use super::ffi::{
    self, Library, ibv_async_event, ibv_context, ibv_device_attr, ibv_event_type, ibv_port_attr,
};

/// An adapter, opened for one connection. Closed when the last thing made of it is gone.
pub struct Context {
    library: &'static Library,
    raw: NonNull<ibv_context>,
    device: String,
    /// None where the kernel does not show it.
    seat: Option<Seat>,
}

// SAFETY: libibverbs may be called from any thread; what is not to be called at the same time is behind locks of ours.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// What an adapter reports by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AsyncEvent {
    /// Its queue pair refused a request of the peer's.
    PeerRefused,
    /// Something that ends connections: queue, completion queue, port or adapter.
    Fatal(String),
    /// Everything else: for the diary.
    Note(String),
}

impl Context {
    /// Opens the adapter of that name.
    pub fn open(device: &str) -> Result<Arc<Context>, VerbsError> {
        let library = ffi::library().map_err(|reason| VerbsError::Library { reason })?;
        let failed = |what: String| move |source| VerbsError::System { what, source };
        let name = CString::new(device).map_err(|_| VerbsError::NoDevice)?;
        // Before it is opened: one that is removed from here on is seen to be gone.
        let seat = Seat::of(Path::new(SYSFS_VERBS), device);
        let mut count: c_int = 0;
        // SAFETY: `count` is ours; the list is freed below.
        let list = unsafe { (library.ibv_get_device_list)(&mut count) };
        if list.is_null() {
            return Err(failed("listing RDMA adapters".to_owned())(io::Error::last_os_error()));
        }
        let mut opened = None;
        for i in 0..count as usize {
            // SAFETY: the list has `count` entries; names are strings that live as long as it.
            unsafe {
                let entry = *list.add(i);
                if std::ffi::CStr::from_ptr((library.ibv_get_device_name)(entry)) == name.as_c_str() {
                    opened = NonNull::new((library.ibv_open_device)(entry));
                    break;
                }
            }
        }
        let error = io::Error::last_os_error();
        // SAFETY: an opened device stays open without the list.
        unsafe { (library.ibv_free_device_list)(list) };
        let raw = opened.ok_or_else(|| {
            failed(format!(
                "opening {device} (its provider is in the package ibverbs-providers; /dev/infiniband must be accessible)"
            ))(error)
        })?;
        let context = Context { library, raw, device: device.to_owned(), seat };
        super::never_block(context.as_fd()).map_err(failed("making a descriptor non-blocking".to_owned()))?;
        Ok(Arc::new(context))
    }

    /// Its name.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Whether it is being removed, and waits for us to close it.
    pub fn is_being_removed(&self) -> bool {
        self.seat.as_ref().is_some_and(Seat::is_gone)
    }

    /// The library it was opened with.
    pub fn library(&self) -> &'static Library {
        self.library
    }

    /// For the functions of the library.
    pub fn raw(&self) -> *mut ibv_context {
        self.raw.as_ptr()
    }

    /// What it can do.
    pub fn limits(&self) -> Result<ibv_device_attr, VerbsError> {
        // SAFETY: a plain structure of numbers, filled by the call.
        let (refused, attr) = unsafe {
            let mut attr: ibv_device_attr = zeroed();
            ((self.library.ibv_query_device)(self.raw(), &mut attr), attr)
        };
        self.checked(refused, "asking for its limits").map(|()| attr)
    }

    /// How a port is set up.
    pub fn port(&self, number: u8) -> Result<ibv_port_attr, VerbsError> {
        // SAFETY: as above; the call fills the front part of the structure that all versions have.
        let (refused, attr) = unsafe {
            let mut attr: ibv_port_attr = zeroed();
            ((self.library.ibv_query_port)(self.raw(), number, &mut attr), attr)
        };
        self.checked(refused, "asking for its port").map(|()| attr)
    }

    /// The next event, if there is one.
    pub fn async_event(&self) -> Option<AsyncEvent> {
        let mut event = MaybeUninit::<ibv_async_event>::zeroed();
        // SAFETY: the call fills the event when it returns 0, and only then is it read and acknowledged. The kind is
        // read as an integer, since a newer library may report kinds that the enum does not have.
        unsafe {
            if (self.library.ibv_get_async_event)(self.raw(), event.as_mut_ptr()) != 0 {
                return None;
            }
            let at = event.as_ptr().cast::<u8>().add(offset_of!(ibv_async_event, event_type));
            let kind = at.cast::<u32>().read();
            let port = event.as_ptr().cast::<c_int>().read();
            let text = ffi::owned((self.library.ibv_event_type_str)(kind));
            (self.library.ibv_ack_async_event)(event.as_mut_ptr());
            Some(judge(kind, &text, &self.device, port))
        }
    }

    fn checked(&self, refused: c_int, what: &str) -> Result<(), VerbsError> {
        match refused {
            0 => Ok(()),
            errno => Err(VerbsError::System {
                what: format!("{}: {what}", self.device),
                source: io::Error::from_raw_os_error(errno.abs()),
            }),
        }
    }
}

impl AsFd for Context {
    /// Readable when there are events.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the context.
        unsafe { BorrowedFd::borrow_raw((*self.raw()).async_fd) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: everything made of it held it, and is gone.
        let refused = unsafe { (self.library.ibv_close_device)(self.raw()) };
        if refused != 0 {
            tracing::warn!(device = self.device, refused, "closing the adapter");
        }
    }
}

fn judge(kind: u32, text: &str, device: &str, port: c_int) -> AsyncEvent {
    const QP_REQ_ERR: u32 = ibv_event_type::IBV_EVENT_QP_REQ_ERR as u32;
    const QP_ACCESS_ERR: u32 = ibv_event_type::IBV_EVENT_QP_ACCESS_ERR as u32;
    const CQ_ERR: u32 = ibv_event_type::IBV_EVENT_CQ_ERR as u32;
    const QP_FATAL: u32 = ibv_event_type::IBV_EVENT_QP_FATAL as u32;
    const DEVICE_FATAL: u32 = ibv_event_type::IBV_EVENT_DEVICE_FATAL as u32;
    const PORT_ERR: u32 = ibv_event_type::IBV_EVENT_PORT_ERR as u32;
    match kind {
        QP_REQ_ERR | QP_ACCESS_ERR => AsyncEvent::PeerRefused,
        PORT_ERR => AsyncEvent::Fatal(format!("{device} port {port} went down")),
        CQ_ERR | QP_FATAL | DEVICE_FATAL => AsyncEvent::Fatal(format!("{device} reports: {text}")),
        _ => AsyncEvent::Note(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_that_end_connections_are_told_from_those_that_do_not() {
        let judged = |kind: ibv_event_type| judge(kind as u32, "text", "rxe0", 1);
        assert_eq!(judged(ibv_event_type::IBV_EVENT_QP_ACCESS_ERR), AsyncEvent::PeerRefused);
        assert_eq!(
            judged(ibv_event_type::IBV_EVENT_PORT_ERR),
            AsyncEvent::Fatal("rxe0 port 1 went down".into())
        );
        let fatal = [
            ibv_event_type::IBV_EVENT_DEVICE_FATAL,
            ibv_event_type::IBV_EVENT_QP_FATAL,
            ibv_event_type::IBV_EVENT_CQ_ERR,
        ];
        for event in fatal {
            assert_eq!(judged(event), AsyncEvent::Fatal("rxe0 reports: text".into()));
        }
        assert_eq!(judged(ibv_event_type::IBV_EVENT_GID_CHANGE), AsyncEvent::Note("text".into()));
        assert_eq!(judge(4_000, "unknown", "rxe0", 1), AsyncEvent::Note("unknown".into()));
    }
}
