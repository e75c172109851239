//! What people often have in place of a file, by its first bytes.

use std::io::{self, Read};

/// Bytes that are looked at.
pub(crate) const HEAD: usize = 64;

/// What stands where a file was expected; nothing if it may be one.
pub(crate) fn instead(head: &[u8]) -> Option<&'static str> {
    let text = String::from_utf8_lossy(head).to_lowercase();
    let text = text.trim_start_matches('\u{feff}').trim_start();
    if head.is_empty() {
        Some("it is empty")
    } else if text.starts_with("version https://git-lfs") {
        Some("it is a Git LFS pointer; fetch the file itself with `git lfs pull`")
    } else if text.starts_with("<!doctype") || text.starts_with("<html") {
        Some("it is a web page, perhaps an error of the server it was downloaded from")
    } else {
        None
    }
}

/// Reads until `buffer` is full or the source ends.
pub(crate) fn read_up_to(
    source: &mut (impl Read + ?Sized),
    buffer: &mut [u8],
) -> io::Result<usize> {
    let mut found = 0;
    while found < buffer.len() {
        match source.read(&mut buffer[found..]) {
            Ok(0) => break,
            Ok(n) => found += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}
