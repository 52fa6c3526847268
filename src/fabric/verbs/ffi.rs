//! libibverbs, opened at run time.
//!
//! Nothing links against it: programs start on machines without rdma-core, and [`library`] says there why verbs is
//! off. Types and the dispatchers that C has as inline functions (they go through the context's table of operations)
//! come from `rdma-sys`; everything that libibverbs exports is looked up here, by the default version of its symbol.
//! `tests/verbs_layout/` compares layouts and constants with what the C compiler makes of the installed headers.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

pub use rdma_sys::{
    ibv_access_flags, ibv_async_event, ibv_comp_channel, ibv_context, ibv_cq, ibv_device, ibv_device_attr,
    ibv_event_type, ibv_gid, ibv_global_route, ibv_mr, ibv_mtu, ibv_pd, ibv_poll_cq, ibv_port_attr,
    ibv_post_recv, ibv_post_send, ibv_qp, ibv_qp_attr, ibv_qp_attr_mask, ibv_qp_cap, ibv_qp_init_attr,
    ibv_qp_state, ibv_qp_type, ibv_recv_wr, ibv_req_notify_cq, ibv_send_flags, ibv_send_wr, ibv_sge, ibv_wc,
    ibv_wc_opcode, ibv_wc_status, ibv_wr_opcode,
};

/// What libibverbs calls itself.
const SONAME: &CStr = c"libibverbs.so.1";

// What the headers keep in nameless enumerations, by C's names: the test reads these lines.
/// Of `ibv_is_fork_initialized`: fork is not safe yet. (1: it is; 2: the kernel sees to it.)
const IBV_FORK_DISABLED: c_int = 0;
/// `link_layer` of a port on Ethernet.
pub const IBV_LINK_LAYER_ETHERNET: u8 = 2;
/// Flag of a port: packets need a global route header.
pub const IBV_QPF_GRH_REQUIRED: u8 = 1;

macro_rules! library {
    ($($name:ident: fn($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// The functions that libibverbs exports. Each is to be called as its man page says.
        pub struct Library {
            $(pub $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
        }

        impl Library {
            fn find(handle: *mut c_void) -> Result<Library, String> {
                Ok(Library {
                    $($name: {
                        let found = symbol(handle, concat!(stringify!($name), "\0"))?;
                        // SAFETY: the symbol of that name has had this signature since the library's soname
                        // became what it is.
                        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($arg),*) $(-> $ret)?>(found) }
                    },)*
                })
            }
        }
    };
}

library! {
    ibv_get_device_list: fn(*mut c_int) -> *mut *mut ibv_device;
    ibv_free_device_list: fn(*mut *mut ibv_device);
    ibv_get_device_name: fn(*mut ibv_device) -> *const c_char;
    ibv_open_device: fn(*mut ibv_device) -> *mut ibv_context;
    ibv_close_device: fn(*mut ibv_context) -> c_int;
    ibv_query_device: fn(*mut ibv_context, *mut ibv_device_attr) -> c_int;
    ibv_query_port: fn(*mut ibv_context, u8, *mut ibv_port_attr) -> c_int;
    ibv_get_async_event: fn(*mut ibv_context, *mut ibv_async_event) -> c_int;
    ibv_ack_async_event: fn(*mut ibv_async_event);
    ibv_event_type_str: fn(c_uint) -> *const c_char;
    ibv_alloc_pd: fn(*mut ibv_context) -> *mut ibv_pd;
    ibv_dealloc_pd: fn(*mut ibv_pd) -> c_int;
    ibv_reg_mr: fn(*mut ibv_pd, *mut c_void, usize, c_int) -> *mut ibv_mr;
    ibv_dereg_mr: fn(*mut ibv_mr) -> c_int;
    ibv_create_comp_channel: fn(*mut ibv_context) -> *mut ibv_comp_channel;
    ibv_destroy_comp_channel: fn(*mut ibv_comp_channel) -> c_int;
    ibv_create_cq: fn(*mut ibv_context, c_int, *mut c_void, *mut ibv_comp_channel, c_int) -> *mut ibv_cq;
    ibv_destroy_cq: fn(*mut ibv_cq) -> c_int;
    ibv_get_cq_event: fn(*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int;
    ibv_ack_cq_events: fn(*mut ibv_cq, c_uint);
    ibv_create_qp: fn(*mut ibv_pd, *mut ibv_qp_init_attr) -> *mut ibv_qp;
    ibv_destroy_qp: fn(*mut ibv_qp) -> c_int;
    ibv_modify_qp: fn(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int;
    ibv_wc_status_str: fn(c_uint) -> *const c_char;
    ibv_is_fork_initialized: fn() -> c_int;
    ibv_fork_init: fn() -> c_int;
}

/// The library, opened once; else why it cannot be.
pub fn library() -> Result<&'static Library, &'static str> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    LIBRARY.get_or_init(open).as_ref().map_err(String::as_str)
}

fn open() -> Result<Library, String> {
    // SAFETY: the initialisers of libibverbs and of the libraries it needs may run at any time.
    let handle = unsafe { libc::dlopen(SONAME.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        return Err(format!("{}; install the packages libibverbs1 and ibverbs-providers", dl_error()));
    }
    let library = Library::find(handle)?;
    make_fork_safe(&library)?;
    Ok(library)
}

/// The agent starts programs: what is registered must stay where the adapter found it.
fn make_fork_safe(library: &Library) -> Result<(), String> {
    // SAFETY: both may be called at any time; nothing has been registered yet.
    let refused = unsafe {
        match (library.ibv_is_fork_initialized)() {
            IBV_FORK_DISABLED => (library.ibv_fork_init)(),
            _ => 0,
        }
    };
    match refused {
        0 => Ok(()),
        errno => Err(format!("ibv_fork_init: {}", std::io::Error::from_raw_os_error(errno))),
    }
}

fn symbol(handle: *mut c_void, name: &str) -> Result<*mut c_void, String> {
    // SAFETY: `handle` was opened and is never closed; `name` ends with a zero byte.
    let found = unsafe { libc::dlsym(handle, name.as_ptr().cast()) };
    if found.is_null() {
        let name = name.trim_end_matches('\0');
        return Err(format!("{} has no {name}: rdma-core 28 or later is needed", SONAME.to_string_lossy()));
    }
    Ok(found)
}

fn dl_error() -> String {
    // SAFETY: dlerror gives null or a string that stays until this thread's next dl call.
    unsafe {
        let text = libc::dlerror();
        if text.is_null() { "dlopen failed".to_owned() } else { owned(text) }
    }
}

/// A copy of a C string.
///
/// # Safety
/// `text` points to a string that ends with a zero byte and does not change meanwhile.
pub unsafe fn owned(text: *const c_char) -> String {
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
