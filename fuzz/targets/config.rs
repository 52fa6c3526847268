//! The configuration: any text is a configuration or an error that names a line, what is wrong, and a remedy.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pmemha::agent::config::{Config, parse_bytes, parse_duration};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text, Path::new("pmemhad.conf")) {
        Ok(config) => {
            for name in config.groups.iter().flat_map(|g| &g.destinations) {
                assert!(config.address_of(name).is_some());
            }
        }
        Err(e) => assert!(e.to_string().contains("pmemhad.conf"), "{e}"),
    }
    let _ = (parse_bytes(text), parse_duration(text));
});
