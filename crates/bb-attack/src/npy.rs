//! NumPy's `.npy` files: what trigger patterns of other programs come in.
//!
//! A reader of our own: the crates for it bring a parser generator or a second array library, and candle's reserves
//! whatever a header asks for. Here nothing is reserved before the file is known to hold it.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use bb_core::files::{self, Links};

/// Largest file that is accepted, in bytes.
pub const MAX_BYTES: u64 = 64 << 20;
/// Most numbers of an array that is read whole, each of which has eight bytes in memory.
const MOST_NUMBERS: usize = (MAX_BYTES / 8) as usize;
/// Longest header that is accepted, in bytes; NumPy writes some hundred.
const MAX_HEADER: usize = 1 << 16;
/// What every file begins with.
pub const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// An array of numbers, last axis fastest.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Length of each axis; none for a single number.
    pub shape: Vec<usize>,
    /// The numbers; integers beyond 2^53 are rounded.
    pub values: Vec<f64>,
    /// What they were stored as.
    pub kind: Kind,
}

/// What the numbers of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Integers of 8 to 64 bits, with or without sign.
    Integer,
    /// Floats of 32 bits.
    Single,
    /// Floats of 64 bits.
    Double,
}

/// An array that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NpyError {
    /// The file cannot be opened or read.
    #[error("cannot read array `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is larger than any trigger.
    #[error("array `{}` has more than {MAX_BYTES} bytes, expected a trigger pattern", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The array has more numbers than any trigger.
    #[error("array `{}` has {found} numbers, expected at most {MOST_NUMBERS}", path.display())]
    TooMany {
        /// The file.
        path: PathBuf,
        /// Its numbers.
        found: usize,
    },
    /// The header is not one of format 1, 2 or 3, or is cut off.
    #[error("`{}` is no valid `.npy` file: {reason}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The numbers are of a type that patterns do not have.
    #[error("array `{}` has type `{found}`, expected integers, `f4` or `f8`", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// NumPy's name of the type.
        found: String,
    },
    /// The numbers are no bytes, where images are expected.
    #[error("array `{}` has type `{found}`, expected `u1`", path.display())]
    NotBytes {
        /// The file.
        path: PathBuf,
        /// NumPy's name of the type.
        found: String,
    },
    /// The first axis is the fastest.
    #[error("array `{}` is in Fortran order, expected C order, as `numpy.ascontiguousarray` makes it", path.display())]
    Fortran {
        /// The file.
        path: PathBuf,
    },
    /// The data are shorter or longer than the header says.
    #[error("array `{}` has {found} bytes of data, expected {expected} for shape {shape:?}", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// The shape in the header.
        shape: Vec<usize>,
        /// Bytes that such an array has.
        expected: String,
        /// Bytes after the header.
        found: usize,
    },
}

/// Reads a file.
pub fn read(path: &Path) -> Result<Array, NpyError> {
    let failed = |source| NpyError::Read {
        path: path.to_owned(),
        source,
    };
    let file = files::open(path, Links::Follow).map_err(failed)?;
    let mut bytes = Vec::new();
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    if read.map_err(failed)? as u64 > MAX_BYTES {
        return Err(NpyError::TooLarge {
            path: path.to_owned(),
        });
    }
    parse(&bytes, path)
}

/// An array of bytes whose rows are read when they are asked for, so that it may be larger than the memory.
#[derive(Debug)]
pub struct ByteArray {
    file: fs_err::File,
    path: PathBuf,
    shape: Vec<usize>,
    /// Where the first row begins.
    start: u64,
}

impl ByteArray {
    /// Opens a file and checks that it has as many bytes as its header says.
    pub fn open(path: &Path) -> Result<Self, NpyError> {
        let failed = |source| NpyError::Read {
            path: path.to_owned(),
            source,
        };
        let mut file = files::open(path, Links::Follow).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let mut head = Vec::new();
        let read = (&mut file)
            .take(2 * MAX_HEADER as u64)
            .read_to_end(&mut head);
        read.map_err(failed)?;
        let (header, data) = split(&head, path)?;
        if !matches!(header.descr, "|u1" | "<u1" | ">u1") {
            return Err(NpyError::NotBytes {
                path: path.to_owned(),
                found: header.descr.chars().take(20).collect(),
            });
        }
        let start = (head.len() - data.len()) as u64;
        let found = usize::try_from(length - start).unwrap_or(usize::MAX);
        check_length(&header, 1, found, path)?;
        Ok(Self {
            shape: header.shape,
            path: path.to_owned(),
            file,
            start,
        })
    }

    /// Length of each axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The rows (along the first axis) at `indices`, one after the other.
    ///
    /// # Panics
    /// If an index is not below the length of the first axis.
    pub fn rows(&mut self, indices: &[usize]) -> Result<Vec<u8>, NpyError> {
        // Where an axis is 0 the others may be anything.
        let axes = self.shape[1..].iter();
        let size = axes.fold(1, |size: usize, &n| size.saturating_mul(n));
        let mut bytes = vec![0; indices.len() * size];
        let mut fill = || -> std::io::Result<()> {
            for (row, &i) in bytes.chunks_exact_mut(size.max(1)).zip(indices) {
                assert!(i < self.shape[0], "row {i} of {}", self.shape[0]);
                let at = self.start + (i * size) as u64;
                self.file.seek(SeekFrom::Start(at))?;
                self.file.read_exact(row)?;
            }
            Ok(())
        };
        fill().map_err(|source| NpyError::Read {
            path: self.path.clone(),
            source,
        })?;
        Ok(bytes)
    }
}

/// Reads the content of a file; `path` is for messages.
pub fn parse(bytes: &[u8], path: &Path) -> Result<Array, NpyError> {
    let (header, data) = split(bytes, path)?;
    /// Integers and floats of either order of bytes, by NumPy's letter and their size.
    macro_rules! decoder {
        ($big:expr, $type:ty, $number:expr) => {{
            let decode: fn(&[u8]) -> f64 = if $big {
                |b| $number(<$type>::from_be_bytes(sized(b)))
            } else {
                |b| $number(<$type>::from_le_bytes(sized(b)))
            };
            (size_of::<$type>(), decode)
        }};
    }
    let (order, name) = header.descr.split_at_checked(1).unwrap_or_default();
    let big = order == ">";
    let unknown = || NpyError::Dtype {
        path: path.to_owned(),
        found: header.descr.chars().take(20).collect(),
    };
    let kind = match name {
        "f4" => Kind::Single,
        "f8" => Kind::Double,
        _ => Kind::Integer,
    };
    let (size, decode) = match (order, name) {
        ("|" | "<" | ">", "u1") => decoder!(big, u8, f64::from),
        ("|" | "<" | ">", "i1") => decoder!(big, i8, f64::from),
        ("<" | ">", "u2") => decoder!(big, u16, f64::from),
        ("<" | ">", "i2") => decoder!(big, i16, f64::from),
        ("<" | ">", "u4") => decoder!(big, u32, f64::from),
        ("<" | ">", "i4") => decoder!(big, i32, f64::from),
        ("<" | ">", "u8") => decoder!(big, u64, |v| v as f64),
        ("<" | ">", "i8") => decoder!(big, i64, |v| v as f64),
        ("<" | ">", "f4") => decoder!(big, f32, f64::from),
        ("<" | ">", "f8") => decoder!(big, f64, f64::from),
        _ => return Err(unknown()),
    };
    check_length(&header, size, data.len(), path)?;
    let found = data.len() / size;
    if found > MOST_NUMBERS {
        return Err(NpyError::TooMany {
            path: path.to_owned(),
            found,
        });
    }
    Ok(Array {
        values: data.chunks_exact(size).map(decode).collect(),
        kind,
        shape: header.shape,
    })
}

/// The header of a file, and what follows it.
fn split<'a>(bytes: &'a [u8], path: &Path) -> Result<(Header<'a>, &'a [u8]), NpyError> {
    let wrong = |reason| NpyError::Header {
        path: path.to_owned(),
        reason,
    };
    let rest = bytes.strip_prefix(MAGIC);
    let rest = rest.ok_or_else(|| wrong("it does not begin with NumPy's mark"))?;
    // Formats 2 and 3 have a longer length; 3 allows names in UTF-8, which arrays of plain numbers have none of.
    let (length, rest) = match rest {
        [1, _, a, b, rest @ ..] => (u32::from(u16::from_le_bytes([*a, *b])), rest),
        [2 | 3, _, a, b, c, d, rest @ ..] => (u32::from_le_bytes([*a, *b, *c, *d]), rest),
        _ => return Err(wrong("its version is not 1, 2 or 3")),
    };
    if length as usize > MAX_HEADER {
        return Err(wrong("its header has more than 65536 bytes"));
    }
    let (text, data) = rest
        .split_at_checked(length as usize)
        .ok_or_else(|| wrong("its header is cut off"))?;
    let text = std::str::from_utf8(text).map_err(|_| wrong("its header is not text"))?;
    let header = header(text).ok_or_else(|| wrong("its header is not understood"))?;
    Ok((header, data))
}

/// Refuses data in the order of Fortran, and such that are shorter or longer than `size` bytes for each number.
fn check_length(
    header: &Header<'_>,
    size: usize,
    found: usize,
    path: &Path,
) -> Result<(), NpyError> {
    if header.fortran {
        return Err(NpyError::Fortran {
            path: path.to_owned(),
        });
    }
    let mut axes = header.shape.iter();
    let expected = axes.try_fold(size, |product, &n| product.checked_mul(n));
    if expected != Some(found) {
        let huge = || "more than this machine can address".to_owned();
        return Err(NpyError::Length {
            path: path.to_owned(),
            expected: expected.map_or_else(huge, |bytes| bytes.to_string()),
            found,
            shape: header.shape.clone(),
        });
    }
    Ok(())
}

/// The content of a file (format 1, `<f4`) with these numbers.
///
/// # Panics
/// If the number of values does not follow from the shape.
pub fn to_bytes(shape: &[usize], values: &[f32]) -> Vec<u8> {
    content("<f4", shape, values, f32::to_le_bytes)
}

/// The content of a file (format 1) with these numbers: whole ones as `|u1` or `<i2` if they fit, others as `<f4`, or as
/// `<f8` if they are `double`.
///
/// Whole numbers become integers, so that those of no more than one are not taken for fractions when they are read again.
///
/// # Panics
/// If the number of values does not follow from the shape.
pub fn smallest_to_bytes(shape: &[usize], values: &[f64], double: bool) -> Vec<u8> {
    let whole = |low: f64, high: f64| {
        let fits = |v: &f64| v.fract() == 0.0 && (low..=high).contains(v);
        values.iter().all(fits)
    };
    if whole(0.0, f64::from(u8::MAX)) {
        content("|u1", shape, values, |v| [v as u8])
    } else if whole(f64::from(i16::MIN), f64::from(i16::MAX)) {
        content("<i2", shape, values, |v| (v as i16).to_le_bytes())
    } else if double {
        content("<f8", shape, values, f64::to_le_bytes)
    } else {
        content("<f4", shape, values, |v| (v as f32).to_le_bytes())
    }
}

/// A file of format 1.
fn content<T: Copy, const N: usize>(
    descr: &str,
    shape: &[usize],
    values: &[T],
    bytes: impl Fn(T) -> [u8; N],
) -> Vec<u8> {
    assert_eq!(shape.iter().product::<usize>(), values.len(), "{shape:?}");
    let mut file = head(descr, shape);
    file.extend(values.iter().flat_map(|&v| bytes(v)));
    file
}

/// What stands before the numbers of a file of format 1.
fn head(descr: &str, shape: &[usize]) -> Vec<u8> {
    let axes: Vec<String> = shape.iter().map(|n| format!("{n},")).collect();
    let mut text = format!(
        "{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}",
        axes.join(" ")
    );
    // The header ends with a line feed, and the data begin at a multiple of 64.
    let head = MAGIC.len() + 4;
    let padded = (head + text.len() + 1).next_multiple_of(64) - head;
    text.push_str(&" ".repeat(padded - text.len() - 1));
    text.push('\n');
    let length = u16::try_from(text.len()).expect("a shape of few axes");
    [MAGIC, &[1, 0][..], &length.to_le_bytes(), text.as_bytes()].concat()
}

/// What the header says.
struct Header<'a> {
    descr: &'a str,
    fortran: bool,
    shape: Vec<usize>,
}

/// Reads the header, which is a Python dictionary with exactly three keys; `None` if it is anything else.
fn header(text: &str) -> Option<Header<'_>> {
    let mut words = Words(text);
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    words.mark('{')?;
    while words.mark('}').is_none() {
        let key = words.string()?;
        words.mark(':')?;
        let again = match key {
            "descr" => descr.replace(words.string()?).is_some(),
            "fortran_order" => fortran.replace(words.truth()?).is_some(),
            "shape" => shape.replace(words.tuple()?).is_some(),
            _ => true,
        };
        if again || (words.mark(',').is_none() && !words.peek('}')) {
            return None;
        }
    }
    words.0.trim().is_empty().then_some(())?;
    Some(Header {
        descr: descr?,
        fortran: fortran?,
        shape: shape?,
    })
}

/// The rest of a header.
struct Words<'a>(&'a str);

impl<'a> Words<'a> {
    fn peek(&self, mark: char) -> bool {
        self.0.trim_start().starts_with(mark)
    }

    fn mark(&mut self, mark: char) -> Option<()> {
        self.0 = self.0.trim_start().strip_prefix(mark)?;
        Some(())
    }

    fn string(&mut self) -> Option<&'a str> {
        let quote = if self.peek('"') { '"' } else { '\'' };
        self.mark(quote)?;
        let (word, rest) = self.0.split_once(quote)?;
        self.0 = rest;
        Some(word)
    }

    fn truth(&mut self) -> Option<bool> {
        let text = self.0.trim_start();
        let (value, rest) = match text.strip_prefix("True") {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix("False")?),
        };
        self.0 = rest;
        Some(value)
    }

    fn tuple(&mut self) -> Option<Vec<usize>> {
        self.mark('(')?;
        let mut numbers = Vec::new();
        while self.mark(')').is_none() {
            let text = self.0.trim_start();
            let digits = text.bytes().take_while(u8::is_ascii_digit).count();
            numbers.push(text[..digits].parse().ok()?);
            self.0 = &text[digits..];
            if self.mark(',').is_none() && !self.peek(')') {
                return None;
            }
        }
        Some(numbers)
    }
}

/// The bytes of one number.
fn sized<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("chunks of the size of the type")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: u8, header: &str, data: &[u8]) -> Vec<u8> {
        let length = header.len() as u32;
        let mut bytes = [MAGIC, &[version, 0][..]].concat();
        match version {
            1 => bytes.extend((length as u16).to_le_bytes()),
            _ => bytes.extend(length.to_le_bytes()),
        }
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Array, String> {
        parse(bytes, Path::new("p.npy")).map_err(|error| error.to_string())
    }

    #[test]
    fn only_a_file_above_the_largest_size_is_too_large() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("p.npy");
        let file = fs_err::File::create(&path).expect("a writable folder");
        for (size, expect) in [(MAX_BYTES, false), (MAX_BYTES + 1, true)] {
            file.set_len(size).expect("a file of zeros");
            let is = matches!(super::read(&path), Err(NpyError::TooLarge { .. }));
            assert_eq!(is, expect, "{size} bytes");
        }
    }

    #[test]
    fn every_format_and_type_is_read() {
        let check = |version, descr: &str, data: &[u8], kind| {
            let head =
                format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (2, 1), }} \n");
            let array = read(&file(version, &head, data)).expect("a valid file");
            assert_eq!(array.shape, [2, 1], "{descr}");
            assert_eq!(array.values, [3.0, 200.0], "{descr}");
            assert_eq!(array.kind, kind, "{descr}");
        };
        for version in 1..=3 {
            check(version, "|u1", &[3, 200], Kind::Integer);
        }
        /// The two numbers as `$type` in both orders of bytes.
        macro_rules! both {
            ($name:literal, $type:ty, $kind:expr) => {
                let (a, b) = (3 as $type, 200 as $type);
                let little = [a.to_le_bytes(), b.to_le_bytes()].concat();
                check(1, concat!("<", $name), &little, $kind);
                let big = [a.to_be_bytes(), b.to_be_bytes()].concat();
                check(2, concat!(">", $name), &big, $kind);
            };
        }
        both!("i2", i16, Kind::Integer);
        both!("u2", u16, Kind::Integer);
        both!("i4", i32, Kind::Integer);
        both!("u4", u32, Kind::Integer);
        both!("i8", i64, Kind::Integer);
        both!("u8", u64, Kind::Integer);
        both!("f4", f32, Kind::Single);
        both!("f8", f64, Kind::Double);
        let signed = "{'descr': '|i1', 'fortran_order': False, 'shape': (2,), }";
        let array = read(&file(1, signed, &[255, 127])).expect("a valid file");
        assert_eq!(
            (array.values, array.kind),
            (vec![-1.0, 127.0], Kind::Integer)
        );
    }

    #[test]
    fn the_spellings_of_a_header_are_read() {
        for (text, shape) in [
            (
                "{'descr': '|u1', 'fortran_order': False, 'shape': (2,), }",
                vec![2],
            ),
            (
                "{\"shape\": ( 1 ,2 ), \"descr\":\"|u1\",\"fortran_order\":False}\n",
                vec![1, 2],
            ),
        ] {
            assert_eq!(read(&file(1, text, &[1, 2])).expect(text).shape, shape);
        }
        let scalar = "{'descr': '|u1', 'fortran_order': False, 'shape': (), }";
        assert_eq!(
            read(&file(1, scalar, &[7])).expect("a number").values,
            [7.0]
        );
    }

    #[test]
    fn what_is_written_is_read_back() {
        let values = [0.5, -1.25, 3e7, 0.0, 1.0, 2.0];
        let bytes = to_bytes(&[1, 2, 3], &values);
        assert_eq!((bytes.len() - 24) % 64, 0);
        let array = read(&bytes).expect("our own file");
        assert_eq!((array.shape, array.kind), (vec![1, 2, 3], Kind::Single));
        assert_eq!(array.values, values.map(f64::from));
        // In the smallest type that holds them; the lengths are those of the data.
        for (values, size, kind) in [
            ([0.0, 1.0, 2.0, 253.0, 254.0, 255.0], 1, Kind::Integer),
            ([-1.0, 0.0, 1.0, 2.0, 3.0, 4.0], 2, Kind::Integer),
            ([0.0, 1.0, 2.0, 3.0, 4.0, 256.0], 2, Kind::Integer),
            ([0.0, 1.0, 2.0, 3.0, 4.0, 0.5], 4, Kind::Single),
            ([0.0, 1.0, 2.0, 3.0, 4.0, 40_000.0], 4, Kind::Single),
            ([0.0, 1.0, 2.0, 3.0, 4.0, 0.1], 8, Kind::Double),
        ] {
            let bytes = smallest_to_bytes(&[2, 3], &values, kind == Kind::Double);
            assert_eq!((bytes.len() - 6 * size) % 64, 0, "{values:?}");
            let array = read(&bytes).expect("our own file");
            assert_eq!((array.shape, array.kind), (vec![2, 3], kind));
            assert_eq!(array.values, values);
        }
    }

    #[test]
    fn hostile_files_are_one_clear_error() {
        let check = |bytes: &[u8], expect: &str| {
            let error = read(bytes).expect_err("not a valid file");
            assert!(error.contains(expect), "{error}\nlacks {expect}");
        };
        let head = |descr: &str, order: &str, shape: &str| {
            format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': ({shape}), }}")
        };
        check(b"", "does not begin with NumPy's mark");
        check(b"\x89PNG\r\n\x1a\n", "does not begin with NumPy's mark");
        check(
            b"\x93NUMPY\x04\x00\x00\x00\x00\x00",
            "version is not 1, 2 or 3",
        );
        // A header of four gigabytes, in a file of a few bytes.
        check(
            b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}",
            "header has more than 65536 bytes",
        );
        check(b"\x93NUMPY\x02\x00\x00\x00\x01\x00{}", "header is cut off");
        let many = MOST_NUMBERS + 1;
        check(
            &file(
                1,
                &head("|u1", "False", &format!("{many},")),
                &vec![0; many],
            ),
            "has 8388609 numbers, expected at most 8388608",
        );
        check(
            &file(1, "{'descr': '|u1'}", &[]),
            "header is not understood",
        );
        check(
            &file(1, "__import__('os')", &[]),
            "header is not understood",
        );
        check(
            &file(1, &head("|u1", "False", "2 3"), &[]),
            "header is not understood",
        );
        check(
            &file(1, &head("|u1", "False", "-1,"), &[]),
            "header is not understood",
        );
        check(
            &file(1, &head("|u1", "no", "1,"), &[0]),
            "header is not understood",
        );
        check(
            &file(1, &(head("|u1", "False", "1,") + "{}"), &[0]),
            "header is not understood",
        );
        check(
            &file(1, &head("|O", "False", "1,"), &[0]),
            "has type `|O`, expected integers, `f4` or `f8`",
        );
        check(
            &file(1, &head("<f4", "True", "1,"), &[0; 4]),
            "is in Fortran order",
        );
        check(
            &file(1, &head("<f4", "False", "3,"), &[0; 8]),
            "has 8 bytes of data, expected 12 for shape [3]",
        );
        check(
            &file(1, &head("<f8", "False", "4294967296, 4294967296"), &[0; 8]),
            "expected more than this machine can address",
        );
        // A product of 0 needs no data, however large the other axes are.
        let empty = file(1, &head("<f8", "False", "0, 4294967296"), &[]);
        assert_eq!(read(&empty).expect("an empty array").values, [0.0; 0]);
        let whole = to_bytes(&[2, 2], &[1.0; 4]);
        for end in (0..whole.len()).step_by(7) {
            read(&whole[..end]).expect_err("truncated");
        }
    }

    #[test]
    fn rows_of_bytes_are_read_one_by_one() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("rows.npy");
        let open = |descr: &str, shape: &str, data: &[u8]| {
            let head =
                format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
            fs_err::write(&path, file(1, &head, data)).expect("a writable folder");
            ByteArray::open(&path).map_err(|error| error.to_string())
        };
        let mut array = open("|u1", "3, 2", &[1, 2, 3, 4, 5, 6]).expect("a valid file");
        assert_eq!(array.shape(), [3, 2]);
        assert_eq!(array.rows(&[2, 0, 2]).expect("rows"), [5, 6, 1, 2, 5, 6]);
        assert_eq!(array.rows(&[]).expect("no row"), [0; 0]);
        // Without rows the other axes may be of any length.
        let mut none = open("|u1", "0, 4294967296, 4294967296", &[]).expect("an empty array");
        assert_eq!(none.rows(&[]).expect("no row"), [0; 0]);
        let error = open("|u1", "3, 2", &[1, 2, 3]).expect_err("cut off");
        assert!(error.contains("has 3 bytes of data, expected 6"), "{error}");
        let error = open("<f4", "1,", &[0; 4]).expect_err("no bytes");
        assert!(error.contains("has type `<f4`, expected `u1`"), "{error}");
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("p.npy");
        mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("a pipe");
        for error in [
            super::read(&path).expect_err("a pipe"),
            ByteArray::open(&path).expect_err("a pipe"),
        ] {
            let NpyError::Read { source, .. } = error else {
                panic!("{error}");
            };
            let text = source.to_string();
            assert!(
                text.contains("is a named pipe, expected a regular file"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = super::read(Path::new("/no/such.npy")).expect_err("no file");
        assert_eq!(error.to_string(), "cannot read array `/no/such.npy`");
    }
}
