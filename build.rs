//! Names the shared library and generates the C header into `OUT_DIR`.
//!
//! A test compares the generated header with `include/pmemha.h`; `PMEMHA_UPDATE_HEADER=1` rewrites it.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libpmemha.so.0");
    println!("cargo::rerun-if-changed=src/capi");
    println!("cargo::rerun-if-changed=cbindgen.toml");
}
