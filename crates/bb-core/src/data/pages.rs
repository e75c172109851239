//! What a Parquet file says of itself, held against what it has, before its reader takes it at its word.
//!
//! The reader builds the schema by recursion, takes memory for as many values as a dictionary is said to have, and unpacks
//! a page to whatever comes out.
//! So the table of contents and the head of each page are walked first, and pages whose unpacker knows no end are
//! unpacked once into nothing.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

use flate2::read::MultiGzDecoder;
use parquet::basic::{Compression, Encoding};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;

use super::budget::Budget;
use super::thrift::{self, Fault, Seen, Walk};

/// Most bytes of a table of contents, which takes some twenty times its size in memory.
const MOST_CONTENTS: u64 = 8 << 20;
/// Most columns and groups of columns.
const MOST_COLUMNS: usize = 4096;
/// Most groups of columns in one another.
const MOST_LEVELS: usize = 32;
/// Most bytes of a column's name.
const MOST_NAME: usize = 256;
/// Most bytes of the head of a page, where some writers put its smallest and its largest value.
const MOST_HEAD: usize = 16 << 20;
/// Bytes of the head of a page that are read first.
const HEAD: usize = 1 << 10;
/// Most bytes of a page, packed or not; writers end it after a megabyte or a thousand images.
const MOST_PAGE: i64 = 1 << 30;
/// Values that any dictionary may have; larger ones have no more than there are rows.
const DICTIONARY: i64 = 1 << 16;
/// Least bytes of a value in a dictionary.
const LEAST_VALUE: i64 = 4;

impl From<Fault> for ParquetError {
    fn from(fault: Fault) -> Self {
        Self::General(match fault {
            Fault::End => "it is cut off".to_owned(),
            Fault::Wrong(what) => what.to_owned(),
        })
    }
}

/// What is wrong, and what was expected.
fn wrong(what: &str, found: impl std::fmt::Display, most: impl std::fmt::Display) -> ParquetError {
    ParquetError::General(format!("{what} is {found}, expected at most {most}"))
}

/// Walks the table of contents at the end of a file of `length` bytes.
///
/// What is no Parquet file at all is left to the reader, which says so.
pub(super) fn check_contents(file: &File, length: u64) -> Result<(), ParquetError> {
    let mut tail = [0; 8];
    let Some(end) = length.checked_sub(8) else {
        return Ok(());
    };
    file.read_exact_at(&mut tail, end)?;
    let [a, b, c, d, magic @ ..] = tail;
    let size = u64::from(u32::from_le_bytes([a, b, c, d]));
    let Some(start) = end.checked_sub(size).filter(|_| magic == *b"PAR1") else {
        return Ok(());
    };
    if size > MOST_CONTENTS {
        return Err(wrong(
            "the size of its table of contents",
            size,
            MOST_CONTENTS,
        ));
    }
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, start)?;
    check_schema(&bytes)
}

/// Checks the number of columns, the depth of groups and the names.
fn check_schema(contents: &[u8]) -> Result<(), ParquetError> {
    /// Where the elements of the schema are.
    const ELEMENT: [i16; 1] = [thrift::SCHEMA];
    const NAME: [i16; 2] = [thrift::SCHEMA, thrift::NAME];
    const CHILDREN: [i16; 2] = [thrift::SCHEMA, thrift::CHILDREN];
    let (mut columns, mut children) = (0, 0);
    // Of each group that is not whole, how many of its children are missing.
    let mut open: Vec<i64> = Vec::new();
    let mut see = |path: &[i16], seen| -> Result<(), ParquetError> {
        match (path, seen) {
            (path, Seen::Number(number)) if path == CHILDREN => {
                children = number;
                if usize::try_from(number).map_or(true, |n| n > MOST_COLUMNS) {
                    return Err(wrong(
                        "the number of columns in a group",
                        number,
                        MOST_COLUMNS,
                    ));
                }
            }
            (path, Seen::Text(length)) if path == NAME && length > MOST_NAME => {
                return Err(wrong("the length of a column's name", length, MOST_NAME));
            }
            (path, Seen::End) if path == ELEMENT => {
                columns += 1;
                if columns > MOST_COLUMNS {
                    return Err(wrong("the number of columns", columns, MOST_COLUMNS));
                }
                open.push(std::mem::take(&mut children));
                if open.len() > MOST_LEVELS {
                    return Err(wrong("the depth of its schema", open.len(), MOST_LEVELS));
                }
                while open.last() == Some(&0) {
                    open.pop();
                    if let Some(missing) = open.last_mut() {
                        *missing -= 1;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    };
    Walk::new(contents).fields(thrift::FOOTER, &mut see)
}

/// What the head of a page says.
#[derive(Debug, Default)]
struct Head {
    kind: i64,
    packed: i64,
    unpacked: i64,
    /// Bytes of levels in front of what is packed.
    levels: i64,
    /// Values by the number of the field that has them.
    values: [(i16, i64); 3],
}

/// Numbers of Parquet's page types.
const DATA_PAGE: i64 = 0;
const DICTIONARY_PAGE: i64 = 2;
const DATA_PAGE_2: i64 = 3;

impl Head {
    /// The head at the beginning of some bytes, and its length.
    fn parse(bytes: &[u8]) -> Result<(Self, usize), Fault> {
        let mut head = Self {
            values: [thrift::DATA, thrift::DICTIONARY, thrift::DATA_2].map(|field| (field, 0)),
            ..Self::default()
        };
        let mut walk = Walk::new(bytes);
        walk.fields(thrift::PAGE, &mut |path: &[i16], seen| {
            if let Seen::Number(number) = seen {
                // The reader keeps 32 bits.
                let number = i64::from(number as i32);
                match *path {
                    [thrift::PAGE_TYPE] => head.kind = number,
                    [thrift::UNPACKED] => head.unpacked = number,
                    [thrift::PACKED] => head.packed = number,
                    [thrift::DATA_2, 5 | 6] => head.levels += number.max(0),
                    [field, thrift::VALUES] => {
                        for (known, values) in &mut head.values {
                            if *known == field {
                                *values = number;
                            }
                        }
                    }
                    _ => {}
                }
            }
            Ok::<(), Fault>(())
        })?;
        Ok((head, walk.at))
    }

    fn values(&self) -> i64 {
        let field = match self.kind {
            DATA_PAGE => thrift::DATA,
            DICTIONARY_PAGE => thrift::DICTIONARY,
            DATA_PAGE_2 => thrift::DATA_2,
            _ => return 0,
        };
        let of_kind = self.values.iter().find(|(known, _)| *known == field);
        of_kind.map_or(0, |(_, values)| *values)
    }
}

/// Walks the pages of a column whose group has `rows`; `unpacked` counts what comes of them.
pub(super) fn check_pages(
    file: &File,
    column: &ColumnChunkMetaData,
    rows: i64,
    unpacked: &Budget,
) -> Result<(), ParquetError> {
    let (mut at, length) = column.byte_range();
    let end = at.saturating_add(length);
    let mut left = rows;
    while at < end {
        let (head, length) = head(file, at, end)?;
        at += length as u64;
        let packed = u64::try_from(head.packed).ok().filter(|n| *n <= end - at);
        let packed = packed.ok_or_else(|| wrong("the size of a page", head.packed, end - at))?;
        check_size(&head, column.compression())?;
        let values = head.values();
        if head.kind == DICTIONARY_PAGE {
            let most = (head.unpacked / LEAST_VALUE).min(rows.max(DICTIONARY));
            if values > most {
                return Err(wrong("the number of values of a dictionary", values, most));
            }
        } else {
            if values > left {
                return Err(wrong("the number of values of a page", values, left));
            }
            left -= values.max(0);
        }
        if column.compression() != Compression::UNCOMPRESSED {
            unpacked.add(packed);
            let size = head.unpacked.unsigned_abs();
            unpacked
                .spend(size)
                .map_err(|most| wrong("the size of its pages once unpacked", size, most))?;
            // Longer levels than the page are refused by the reader.
            let levels = head.levels.unsigned_abs();
            if let Some(packed) = packed.checked_sub(levels) {
                check_end(file, at + levels, packed, size, column.compression())?;
            }
        }
        at += packed;
    }
    Ok(())
}

/// The head of the page at `at`, and its length.
fn head(file: &File, at: u64, end: u64) -> Result<(Head, usize), ParquetError> {
    let mut bytes = Vec::new();
    let most = usize::try_from(end - at)
        .unwrap_or(MOST_HEAD)
        .min(MOST_HEAD);
    let mut size = HEAD.min(most);
    loop {
        bytes.resize(size, 0);
        file.read_exact_at(&mut bytes, at)?;
        match Head::parse(&bytes) {
            Err(Fault::End) if size < most => size = (size * 16).min(most),
            found => return Ok(found?),
        }
    }
}

fn check_size(head: &Head, compression: Compression) -> Result<(), ParquetError> {
    if head.packed > MOST_PAGE {
        return Err(wrong("the size of a page", head.packed, MOST_PAGE));
    }
    // Without compression the reader takes the bytes as they are, whatever they should be once unpacked.
    if compression == Compression::UNCOMPRESSED && head.kind != DICTIONARY_PAGE {
        return Ok(());
    }
    let most = match compression {
        Compression::UNCOMPRESSED => head.packed,
        _ => MOST_PAGE,
    };
    if !(0..=most).contains(&head.unpacked) {
        return Err(wrong(
            "the size of a page once unpacked",
            head.unpacked,
            most,
        ));
    }
    Ok(())
}

/// Unpacks a page into nothing where its unpacker would go on behind the size that its head says.
fn check_end(
    file: &File,
    at: u64,
    packed: u64,
    size: u64,
    compression: Compression,
) -> Result<(), ParquetError> {
    let page = || -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; packed as usize];
        file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    };
    let found = match compression {
        Compression::GZIP(_) => drained(MultiGzDecoder::new(&page()?[..]), size),
        Compression::BROTLI(_) => drained(brotli::Decompressor::new(&page()?[..], 1 << 16), size),
        Compression::LZ4 => {
            let mut first = [0; 4];
            file.read_exact_at(&mut first[..packed.min(4) as usize], at)?;
            // What one writer made for a while in place of the blocks that the format asks for.
            match first {
                [4, 0x22, 0x4d, 0x18] | [2, 0x21, 0x4c, 0x18] => {
                    return Err(ParquetError::General(
                        "a page is an LZ4 frame, expected blocks".to_owned(),
                    ));
                }
                _ => 0,
            }
        }
        _ => 0,
    };
    if found > size {
        return Err(ParquetError::General(format!(
            "a page has more than the {size} bytes that its head says"
        )));
    }
    Ok(())
}

/// How many bytes come out, as far as one behind `size`; what cannot be unpacked is left to the reader.
fn drained(unpacker: impl Read, size: u64) -> u64 {
    io::copy(&mut unpacker.take(size + 1), &mut io::sink()).unwrap_or(0)
}

/// A column's pages, of which those with numbers in front of the values are checked once unpacked.
pub(super) struct Checked {
    pub(super) inner: Box<dyn PageReader>,
    /// Whether values have definition levels.
    pub(super) has_levels: bool,
    /// Whether only one value is read at a time.
    pub(super) is_single: bool,
}

impl Checked {
    fn check(&self, page: &Page) -> Result<(), ParquetError> {
        let encoding = page.encoding();
        if encoding == Encoding::DELTA_BYTE_ARRAY && !self.is_single {
            return Err(ParquetError::General(format!(
                "a page has the encoding {encoding}, which its column does not name"
            )));
        }
        let is_suffixes = encoding == Encoding::DELTA_BYTE_ARRAY;
        if !is_suffixes && encoding != Encoding::DELTA_LENGTH_BYTE_ARRAY {
            return Ok(());
        }
        let bytes = self.values(page).ok_or(Fault::End)?;
        let mut walk = Walk::new(bytes);
        skip_deltas(&mut walk, bytes, page.num_values().into())?;
        if is_suffixes {
            let mut suffixes = Walk::new(&bytes[walk.at..]);
            skip_deltas(&mut suffixes, &bytes[walk.at..], page.num_values().into())?;
        }
        Ok(())
    }

    /// The bytes behind the levels.
    fn values<'a>(&self, page: &'a Page) -> Option<&'a [u8]> {
        let bytes: &[u8] = page.buffer();
        let levels = match page {
            Page::DataPageV2 {
                def_levels_byte_len,
                rep_levels_byte_len,
                ..
            } => def_levels_byte_len.checked_add(*rep_levels_byte_len)? as usize,
            _ if !self.has_levels => 0,
            // Writers that know these encodings have left the older form of levels behind.
            Page::DataPage {
                def_level_encoding: Encoding::RLE,
                ..
            } => {
                let size = bytes.first_chunk()?;
                4 + u32::from_le_bytes(*size) as usize
            }
            _ => return None,
        };
        bytes.get(levels..)
    }
}

/// Walks over numbers that are packed as differences, at most `most`, to where the reader takes their end to be.
fn skip_deltas(walk: &mut Walk<'_>, bytes: &[u8], most: u64) -> Result<(), ParquetError> {
    let (block, parts, count) = (walk.varint()?, walk.varint()?, walk.varint()?);
    if count > most {
        return Err(wrong("the number of lengths of a page", count, most));
    }
    walk.zigzag()?;
    let mut left = count.saturating_sub(1);
    let part = block.checked_div(parts).filter(|part| *part > 0);
    let part = part.ok_or(Fault::Wrong("the lengths of a page are in empty blocks"))?;
    while left > 0 {
        walk.zigzag()?;
        let start = walk.at;
        walk.pass(usize::try_from(parts).map_err(|_| Fault::End)?)?;
        for width in &bytes[start..walk.at] {
            if left > 0 {
                let size = u64::from(*width).checked_mul(part).ok_or(Fault::End)? / 8;
                walk.pass(usize::try_from(size).map_err(|_| Fault::End)?)?;
            }
            left = left.saturating_sub(part);
        }
    }
    Ok(())
}

impl Iterator for Checked {
    type Item = Result<Page, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Checked {
    fn get_next_page(&mut self) -> Result<Option<Page>, ParquetError> {
        let page = self.inner.get_next_page()?;
        if let Some(page) = &page {
            self.check(page)?;
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>, ParquetError> {
        self.inner.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<(), ParquetError> {
        self.inner.skip_next_page()
    }
}
