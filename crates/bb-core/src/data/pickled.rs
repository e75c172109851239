//! CIFAR's batches in Python's form: pickled dictionaries of labels, pixels and names.

use std::rc::Rc;

use crate::pickle::{Array, Element, Limits, Object, Pickle, PickleError, Value};

/// Enough for the 50,000 images of CIFAR-100 with two labels and a name each.
const LIMITS: Limits = Limits {
    values: 1_000_000,
    bytes: 256 << 20,
};

/// Why the bytes are no batch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PickleFault {
    /// It is no pickle of plain values and arrays. Nothing in it was executed.
    #[error(transparent)]
    Unread(#[from] PickleError),
    /// A field is absent.
    #[error("the pickle is no dictionary with {expected}")]
    Field {
        /// The name that was looked for.
        expected: &'static str,
    },
    /// A field is of another kind.
    #[error("`{field}` is not {expected}")]
    Kind {
        /// The field.
        field: &'static str,
        /// What it should be.
        expected: &'static str,
    },
}

use PickleFault as Fault;

/// What a batch holds.
#[derive(Debug, PartialEq)]
pub(super) struct Batch {
    pub(super) labels: Vec<i64>,
    /// Three planes of 32x32 bytes for each label.
    pub(super) pixels: Rc<[u8]>,
}

const PIXELS: usize = 3 * 32 * 32;

/// Labels and pixels of a batch of CIFAR-10 (`labels`) or CIFAR-100 (`fine_labels`).
pub(super) fn batch(bytes: &[u8], labels: &'static str) -> Result<Batch, Fault> {
    let pickle = Pickle::read(bytes, LIMITS)?;
    let numbers = integers(&pickle, field(&pickle, labels)?).ok_or(Fault::Kind {
        field: labels,
        expected: "a list of whole numbers",
    })?;
    let expected = numbers.len().checked_mul(PIXELS);
    pixels(&pickle, field(&pickle, "data")?)
        .filter(|pixels| Some(pixels.len()) == expected)
        .map(|pixels| Batch {
            labels: numbers,
            pixels,
        })
        .ok_or(Fault::Kind {
            field: "data",
            expected: "an array of 8-bit numbers with 3072 for each label",
        })
}

/// The names under `name` of `batches.meta` or `meta`.
pub(super) fn names(bytes: &[u8], name: &'static str) -> Result<Vec<String>, Fault> {
    let pickle = Pickle::read(bytes, LIMITS)?;
    let text = |value: &Value| match value {
        Value::Text(text) => Some(text.to_string()),
        Value::Bytes(text) => String::from_utf8(text.to_vec()).ok(),
        _ => None,
    };
    let names = pickle.sequence(field(&pickle, name)?);
    names
        .and_then(|names| names.iter().map(text).collect())
        .ok_or(Fault::Kind {
            field: name,
            expected: "a list of names",
        })
}

/// The value of this name; its key is text, or bytes where Python 3 kept what Python 2 wrote.
fn field<'a>(pickle: &'a Pickle, name: &'static str) -> Result<&'a Value, Fault> {
    let is_name = |key: &Value| match key {
        Value::Text(text) => &**text == name,
        Value::Bytes(text) => &**text == name.as_bytes(),
        _ => false,
    };
    let entries = pickle.dict(&pickle.root).into_iter().flatten();
    let mut found = entries.filter(|(key, _)| is_name(key));
    // Of two entries the last one counts, as in Python.
    found
        .next_back()
        .map(|(_, value)| value)
        .ok_or(Fault::Field { expected: name })
}

/// The numbers of a list or of an array with one axis.
fn integers(pickle: &Pickle, value: &Value) -> Option<Vec<i64>> {
    if let Some(Object::Array(Some(array))) = pickle.object(value) {
        return numbers(array);
    }
    let number = |value: &Value| match value {
        Value::Int(number) => Some(*number),
        _ => None,
    };
    pickle.sequence(value)?.iter().map(number).collect()
}

fn numbers(array: &Array) -> Option<Vec<i64>> {
    let size = array.element.bytes();
    let signed = match array.element {
        Element::I64 | Element::I32 | Element::I16 | Element::I8 => true,
        Element::U32 | Element::U16 | Element::U8 => false,
        _ => return None,
    };
    let number = |bytes: &[u8]| {
        let negative = signed && bytes.last().is_some_and(|last| *last > 127);
        let mut wide = [if negative { 255 } else { 0 }; 8];
        wide[..size].copy_from_slice(bytes);
        i64::from_le_bytes(wide)
    };
    (array.shape.len() == 1).then(|| array.data.chunks_exact(size).map(number).collect())
}

/// Bytes, as an array with its last axis running fastest or as they are.
fn pixels(pickle: &Pickle, value: &Value) -> Option<Rc<[u8]>> {
    match value {
        Value::Bytes(bytes) => Some(bytes.clone()),
        Value::Text(text) => Some(text.clone().into()),
        _ => match pickle.object(value)? {
            Object::Array(Some(array)) if array.element == Element::U8 && !array.fortran => {
                Some(array.data.clone())
            }
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch as Python 2's `cPickle` writes it, in protocol 2, with `n` images whose bytes are `fill`.
    fn python2(labels: &[u8], fill: u8) -> Vec<u8> {
        let n = labels.len();
        let data = vec![fill; n * PIXELS];
        let list: Vec<u8> = labels.iter().flat_map(|label| [b'K', *label]).collect();
        [
            b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U\x06labelsq\x04]q\x05(".as_slice(),
            &list,
            b"eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\0\x85U\x01b\x87Rq\x09(K\x01K",
            &[n as u8],
            b"M\0\x0c\x86cnumpy\ndtype\nq\x0aU\x02u1K\0K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89T",
            &(data.len() as u32).to_le_bytes(),
            &data,
            b"tbU\x09filenamesq\x0c]q\x0d(",
            &b"U\x07a_s.png".repeat(n),
            b"eu.",
        ]
        .concat()
    }

    #[test]
    fn a_batch_of_python_2_is_read() {
        let bytes = python2(&[3, 0, 9], 7);
        let read = batch(&bytes, "labels").expect("a batch");
        assert_eq!(read.labels, [3, 0, 9]);
        assert_eq!(*read.pixels, [7; 3 * PIXELS]);
        assert_eq!(
            batch(&bytes, "fine_labels")
                .expect_err("CIFAR-10")
                .to_string(),
            "the pickle is no dictionary with fine_labels"
        );
    }

    #[test]
    fn bytes_of_python_3_are_read() {
        // {b"labels": [5], b"data": b"\xe9" * 3072} of Python 3 in protocol 2.
        let text = "é".repeat(PIXELS);
        let two = [
            b"\x80\x02}q\0(c_codecs\nencode\nq\x01X\x06\0\0\0labelsX\x06\0\0\0latin1q\x02\x86R]K\x05ah\x01X\x04\0\0\0datah\x02\x86Rh\x01X".as_slice(),
            &(text.len() as u32).to_le_bytes(),
            text.as_bytes(),
            b"h\x02\x86Ru.",
        ]
        .concat();
        // The same in protocol 4, with a frame and memoised values.
        let four = [
            b"\x80\x04\x95\0\0\0\0\0\0\0\0}\x94(C\x06labels\x94]\x94K\x05aC\x04data\x94B"
                .as_slice(),
            &(PIXELS as u32).to_le_bytes(),
            &[0xe9; PIXELS],
            b"\x94u.",
        ]
        .concat();
        for bytes in [two, four] {
            let read = batch(&bytes, "labels").expect("a batch");
            assert_eq!(
                (&read.labels[..], &read.pixels[..]),
                (&[5][..], &[0xe9; PIXELS][..])
            );
        }
    }

    /// `{"labels": labels, "data": bytes(3072 * 2)}`, the labels being instructions that leave them on the stack.
    fn labelled(labels: &[u8]) -> Vec<u8> {
        [
            b"\x80\x02}(U\x06labels".as_slice(),
            labels,
            b"U\x04dataT\0\x18\0\0",
            &[0; 2 * PIXELS],
            b"u.",
        ]
        .concat()
    }

    #[test]
    fn labels_may_be_an_array_or_numbers_of_numpy() {
        let eight = b"cnumpy\ndtype\nU\x02i8\x89\x88\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb".as_slice();
        let scalar = |label: u8| {
            let call = b"cnumpy._core.multiarray\nscalar\n".as_slice();
            [
                call,
                eight,
                b"U\x08",
                &[label, 0, 0, 0, 0, 0, 0, 0],
                b"\x86R",
            ]
            .concat()
        };
        let list = [b"](".as_slice(), &scalar(7), &scalar(2), b"e"].concat();
        let buffer = [
            b"cnumpy.core.numeric\n_frombuffer\n(U\x10\x07\0\0\0\0\0\0\0\xfe\xff\xff\xff\xff\xff\xff\xff".as_slice(),
            eight,
            b"K\x02\x85U\x01CtR",
        ]
        .concat();
        let labels = |bytes: &[u8]| batch(&labelled(bytes), "labels").map(|batch| batch.labels);
        assert_eq!(labels(&list).expect("a list"), [7, 2]);
        assert_eq!(labels(&buffer).expect("an array"), [7, -2]);
        let big = [b"](".as_slice(), &scalar(7), b"e"].concat();
        let big: Vec<u8> = big
            .iter()
            .map(|b| if *b == b'<' { b'>' } else { *b })
            .collect();
        assert!(labels(&big).is_err(), "another order of bytes");
    }

    #[test]
    fn names_are_read() {
        let meta = b"\x80\x02}q\x01(U\x13num_cases_per_batchq\x02M\x10'U\x0blabel_namesq\x03]q\x04(U\x08airplaneq\x05U\x03catq\x06eu.";
        assert_eq!(
            names(meta, "label_names").expect("names"),
            ["airplane", "cat"]
        );
        assert_eq!(
            names(meta, "num_cases_per_batch")
                .expect_err("a number")
                .to_string(),
            "`num_cases_per_batch` is not a list of names"
        );
    }

    #[test]
    fn nothing_else_is_read_and_nothing_is_called() {
        for (bytes, name) in [
            (&b"cos\nsystem\n(U\x02idtR."[..], "os.system"),
            (
                b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",
                "builtins.eval",
            ),
            (b"cnumpy\nload\n.", "numpy.load"),
        ] {
            let error = batch(bytes, "labels").expect_err(name).to_string();
            assert!(error.contains(name), "{error}");
        }
        let lists = b"h\0".repeat(LIMITS.values + 1);
        for bytes in [
            &b"\x80\x02}(U\x06labels]ibuiltins\nx\n."[..],
            b"P1\n.",
            b"",
            b".",
            b"\x80\x02}T\xff\xff\xff\xff",
            b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff.",
            b"h\x05.",
            b"(tR.",
            &[&b"]q\0"[..], &lists, b"."].concat(),
            &b"N".repeat(LIMITS.values + 1),
        ] {
            let found = batch(bytes, "labels");
            assert!(matches!(found, Err(Fault::Unread(_))), "{found:?}");
        }
        for (bytes, expect) in [
            (&b"]."[..], "the pickle is no dictionary with labels"),
            // A list that holds itself ends like any other.
            (b"]q\0h\0a.", "the pickle is no dictionary with labels"),
            (
                b"}(U\x06labels]U\x04dataNu.",
                "`data` is not an array of 8-bit numbers with 3072 for each label",
            ),
            (
                b"}(U\x06labelsNU\x04dataNu.",
                "`labels` is not a list of whole numbers",
            ),
            (
                b"}(U\x06labels]K\x01aU\x04dataU\x03abcu.",
                "`data` is not an array of 8-bit numbers with 3072 for each label",
            ),
        ] {
            assert_eq!(
                batch(bytes, "labels").expect_err(expect).to_string(),
                expect
            );
        }
    }

    #[test]
    fn a_batch_that_is_cut_is_refused_at_every_length() {
        let bytes = python2(&[1], 3);
        for length in
            (0..bytes.len()).filter(|length| length % 37 == 0 || bytes.len() - length < 60)
        {
            assert!(batch(&bytes[..length], "labels").is_err(), "{length}");
        }
        let mut fortran = bytes.clone();
        let flag = bytes
            .windows(3)
            .position(|w| w == b"b\x89T")
            .expect("the flag")
            + 1;
        fortran[flag] = 0x88;
        assert!(batch(&fortran, "labels").is_err());
        let wide = bytes.windows(2).position(|w| w == b"u1").expect("the type");
        let mut floats = bytes;
        floats[wide..wide + 2].copy_from_slice(b"f4");
        assert!(batch(&floats, "labels").is_err());
    }
}
