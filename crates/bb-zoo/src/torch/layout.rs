//! The layout of a zip archive as PyTorch writes it: files one behind the other from the first byte on, and the
//! directory behind them to the last one.
//!
//! An archive is read by its directory, and a program that reads it by the heads of its files can find something else;
//! so the two must say the same, and nothing may stand where neither of them looks.

use std::io::{self, Read as _, Seek as _, SeekFrom};

use fs_err::File;

use super::pickle::short;

/// Most bytes of the directory: PyTorch's names are short.
const MOST_DIRECTORY: u64 = 16 << 20;
/// Most files in an archive; a large network has a few hundred tensors.
pub(super) const MOST_ENTRIES: u64 = 20_000;
/// The flags that may be set: sizes behind the content (bit 3), names in UTF-8 (bit 11).
const FLAGS: u16 = BEHIND | 1 << 11;
const BEHIND: u16 = 1 << 3;
/// What stands in 32 bits for a number of 64 elsewhere.
const ELSEWHERE: u32 = u32::MAX;

/// What is wrong with an archive.
pub(super) enum Fault {
    /// The file could not be read.
    Read(io::Error),
    /// It is laid out otherwise.
    Layout(String),
    /// It has so many files.
    Crowd(u64),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

fn wrong(what: impl Into<String>) -> Fault {
    Fault::Layout(what.into())
}

/// One file by its directory.
struct Entry {
    name: Vec<u8>,
    flags: u16,
    method: u16,
    crc: u32,
    size: u64,
    /// Where its head begins.
    at: u64,
}

/// Checks a file of `len` bytes that begins with the head of a file in an archive, and returns how many there are.
pub(super) fn check(file: &mut File, len: u64) -> Result<u64, Fault> {
    let end =
        end(file, len)?.ok_or_else(|| wrong("the archive is cut off, or something follows it"))?;
    if end.start.checked_add(end.size) != Some(end.behind) {
        return Err(wrong(
            "the directory of the archive is not where its end says; something may stand before it",
        ));
    }
    if end.count > MOST_ENTRIES {
        return Err(Fault::Crowd(end.count));
    }
    if end.size > MOST_DIRECTORY {
        return Err(wrong(format!(
            "the directory of the archive has {} bytes, expected at most {MOST_DIRECTORY}",
            end.size
        )));
    }
    let mut bytes = vec![0; end.size as usize];
    file.seek(SeekFrom::Start(end.start))?;
    file.read_exact(&mut bytes)?;
    let mut entries = Vec::new();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let (entry, length) =
            entry(rest).ok_or_else(|| wrong("the directory of the archive is damaged"))?;
        entries.push(entry);
        rest = &rest[length..];
    }
    if entries.len() as u64 != end.count {
        return Err(wrong("two files of the archive have one name"));
    }
    entries.sort_by_key(|entry| entry.at);
    let mut at = 0;
    for entry in &entries {
        check_gap(at, entry.at)?;
        at = check_head(file, entry)?;
    }
    check_gap(at, end.start)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(end.count)
}

fn check_gap(expected: u64, found: u64) -> Result<(), Fault> {
    match found {
        _ if found == expected => Ok(()),
        _ if expected == 0 => Err(wrong("something stands before the archive")),
        _ => Err(wrong(
            "something stands between the files of the archive, or they share bytes",
        )),
    }
}

/// What the end of an archive says.
struct End {
    /// Files.
    count: u64,
    /// Where the directory begins.
    start: u64,
    /// Bytes of the directory.
    size: u64,
    /// Where the end itself begins.
    behind: u64,
}

/// The end of an archive; `None` if it does not end the file.
fn end(file: &mut File, len: u64) -> io::Result<Option<End>> {
    const END: u64 = 22;
    const LOCATOR: u64 = 20;
    const RECORD: u64 = 56;
    if len < END {
        return Ok(None);
    }
    let mut at = |offset: u64, buffer: &mut [u8]| -> io::Result<()> {
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(buffer)
    };
    let mut end = [0; END as usize];
    at(len - END, &mut end)?;
    if !end.starts_with(b"PK\x05\x06") || end[20..] != [0, 0] {
        return Ok(None);
    }
    let mut found = End {
        count: u16_at(&end, 10).into(),
        size: u32_at(&end, 12).into(),
        start: u32_at(&end, 16).into(),
        behind: 0,
    };
    let mut behind = len - END;
    // PyTorch always writes the records for large archives as well.
    if let Some(place) = behind.checked_sub(LOCATOR) {
        let mut locator = [0; LOCATOR as usize];
        at(place, &mut locator)?;
        if locator.starts_with(b"PK\x06\x07") {
            behind = u64_at(&locator, 8);
            let mut record = [0; RECORD as usize];
            if behind.checked_add(RECORD) != Some(place) {
                return Ok(None);
            }
            at(behind, &mut record)?;
            if !record.starts_with(b"PK\x06\x06") {
                return Ok(None);
            }
            found = End {
                count: u64_at(&record, 32),
                size: u64_at(&record, 40),
                start: u64_at(&record, 48),
                behind,
            };
        }
    }
    found.behind = behind;
    Ok(Some(found))
}

/// The first entry of a directory, and its length.
fn entry(bytes: &[u8]) -> Option<(Entry, usize)> {
    const HEAD: usize = 46;
    let head = bytes.get(..HEAD)?;
    if !head.starts_with(b"PK\x01\x02") {
        return None;
    }
    let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(u16_at(head, at)));
    let length = HEAD + name + extra + comment;
    let rest = bytes.get(HEAD..length)?;
    let mut wide = wide(&rest[name..name + extra]);
    let mut number = |at| match u32_at(head, at) {
        ELSEWHERE => wide.next(),
        number => Some(number.into()),
    };
    // In this order they stand in the field for large numbers.
    let (size, packed, at) = (number(24)?, number(20)?, number(42)?);
    let entry = Entry {
        name: rest[..name].to_vec(),
        flags: u16_at(head, 8),
        method: u16_at(head, 10),
        crc: u32_at(head, 16),
        size,
        at,
    };
    (packed == size || entry.method != 0).then_some((entry, length))
}

/// The numbers of the field for large ones.
fn wide(mut extra: &[u8]) -> impl Iterator<Item = u64> {
    let mut found: &[u8] = &[];
    while let Some(head) = extra.get(..4) {
        let length = usize::from(u16_at(head, 2));
        let Some(field) = extra.get(4..4 + length) else {
            break;
        };
        if u16_at(head, 0) == 1 {
            found = field;
            break;
        }
        extra = &extra[4 + length..];
    }
    found
        .as_chunks::<8>()
        .0
        .iter()
        .map(|bytes| u64::from_le_bytes(*bytes))
}

/// Compares the head of a file with the directory, and returns where the next one must begin.
fn check_head(file: &mut File, entry: &Entry) -> Result<u64, Fault> {
    const HEAD: usize = 30;
    let name = || short(&String::from_utf8_lossy(&entry.name));
    if entry.flags & !FLAGS != 0 || entry.method != 0 {
        return Err(wrong(format!(
            "`{}` is compressed or encrypted, which `torch.save` never does",
            name()
        )));
    }
    let mut head = [0; HEAD];
    let mut found = vec![0; entry.name.len()];
    file.seek(SeekFrom::Start(entry.at))?;
    file.read_exact(&mut head)?;
    file.read_exact(&mut found)?;
    let [crc, packed, size] = [14, 18, 22].map(|at| u32_at(&head, at));
    let small = u32::try_from(entry.size).unwrap_or(ELSEWHERE);
    // Sizes behind the content leave nothing in front of it, or the same; those of large files stand in a field.
    let fits = |found, expected| match found {
        0 if entry.flags & BEHIND != 0 => true,
        found => found == expected || (found == ELSEWHERE && expected == small),
    };
    let is_same = head.starts_with(b"PK\x03\x04")
        && u16_at(&head, 6) == entry.flags
        && u16_at(&head, 8) == entry.method
        && usize::from(u16_at(&head, 26)) == entry.name.len()
        && found == entry.name
        && (crc == entry.crc || (crc == 0 && entry.flags & BEHIND != 0))
        && fits(packed, small)
        && fits(size, small);
    if !is_same {
        return Err(wrong(format!(
            "`{}` has another head than the directory of the archive says",
            name()
        )));
    }
    let content = HEAD as u64 + found.len() as u64 + u64::from(u16_at(&head, 28));
    let end = entry
        .at
        .checked_add(content)
        .and_then(|at| at.checked_add(entry.size));
    let end = end.ok_or_else(|| wrong("the directory of the archive is damaged"))?;
    if entry.flags & BEHIND == 0 {
        return Ok(end);
    }
    behind(file, entry, end)?.ok_or_else(|| {
        wrong(format!(
            "behind `{}` stand other sizes than the directory of the archive says",
            name()
        ))
    })
}

/// The end of what stands behind a file, its checksum and sizes of 32 or 64 bits.
fn behind(file: &mut File, entry: &Entry, at: u64) -> io::Result<Option<u64>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(at))?;
    file.by_ref().take(24).read_to_end(&mut bytes)?;
    let crc = entry.crc.to_le_bytes();
    let size = entry.size.to_le_bytes();
    let small = &size[..4];
    let forms = [
        [b"PK\x07\x08", &crc[..], &size, &size].concat(),
        [b"PK\x07\x08", &crc[..], small, small].concat(),
    ];
    let found = forms.iter().find(|form| bytes.starts_with(form));
    Ok(found.map(|form| at + form.len() as u64))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
