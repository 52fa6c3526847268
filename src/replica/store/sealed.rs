//! Small JSON files with a checksum: one line of JSON, one line `crc32c:xxxxxxxx`.

/// The file's bytes for a line of JSON.
pub fn seal(json: &str) -> String {
    format!("{json}\ncrc32c:{:08x}\n", crc32c::crc32c(json.as_bytes()))
}

/// The line of JSON in a file's bytes; says what is wrong with them.
pub fn unseal(bytes: &[u8]) -> Result<&str, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "not text")?;
    let (json, rest) = text.split_once('\n').ok_or("cut off")?;
    let crc = rest.strip_prefix("crc32c:").and_then(|r| r.strip_suffix('\n')).ok_or("no checksum")?;
    // Compared as text, so that each content has one representation.
    if crc != format!("{:08x}", crc32c::crc32c(json.as_bytes())) {
        return Err("checksum does not fit".to_owned());
    }
    Ok(json)
}
