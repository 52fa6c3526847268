//! Names the shared library and generates the C header into `OUT_DIR`.
//!
//! A test compares the generated header with `include/pmemha.h`; `PMEMHA_UPDATE_HEADER=1` rewrites it.

use std::path::Path;

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libpmemha.so.0");
    println!("cargo::rerun-if-changed=src/capi");
    println!("cargo::rerun-if-changed=cbindgen.toml");
    if std::env::var_os("CARGO_FEATURE_CAPI").is_some() {
        generate_header();
    }
}

fn generate_header() {
    let out = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    let config = cbindgen::Config::from_file("cbindgen.toml").expect("cbindgen.toml is sound");
    let all = Path::new(&out).join("capi.rs");
    std::fs::write(&all, in_reading_order()).expect("OUT_DIR is writable");
    let builder = cbindgen::Builder::new().with_config(config).with_src(&all);
    match builder.generate() {
        Ok(bindings) => {
            let mut text = Vec::new();
            bindings.write(&mut text);
            let text = String::from_utf8(text).expect("the sources are UTF-8");
            std::fs::write(Path::new(&out).join("pmemha.h"), for_c(&text)).expect("OUT_DIR is writable");
        }
        // The compiler's own message on the same source is better than a panic here.
        Err(e) => println!("cargo::warning=no C header: {e}"),
    }
}

/// Leaves out what only Rust callers need to read: the sections on `unsafe` at the ends of comments.
fn for_c(header: &str) -> String {
    let mut plain = Vec::new();
    let mut skipping = false;
    for line in header.lines() {
        if line.trim() == "* # Safety" {
            skipping = true;
            // The empty line above belongs to the section.
            plain.pop();
        }
        skipping &= line.trim() != "*/";
        if !skipping {
            plain.push(line);
        }
    }
    plain.join("\n") + "\n"
}

/// The sources as one file, so that the header comes in the order in which it is to be read.
fn in_reading_order() -> String {
    let files = ["mod", "status", "session", "region", "order"];
    let texts = files.map(|file| {
        let path = format!("src/capi/{file}.rs");
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
    });
    // A module's own documentation may stand only at the start of a file.
    texts.concat().lines().filter(|line| !line.starts_with("//!")).map(|line| format!("{line}\n")).collect()
}
