//! The little of Python's pickle that CIFAR's batches are made of: dictionaries, lists, text, numbers, NumPy arrays.
//!
//! Nothing is executed. A pickle names functions; the few that stand in files of this kind are known here by name and
//! only describe an array or bytes, and any other name is an error, as is any other instruction.
//! This crate is below bb-zoo, whose reader of checkpoints knows far more; what is here is kept to these files.

use std::borrow::Cow;
use std::collections::HashMap;

/// Most values in one file: CIFAR-100's has 150,000.
const MOST_VALUES: usize = 1_000_000;

/// Why the bytes are no such pickle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PickleFault {
    /// The instructions stop early, or one of them lacks what it works on.
    #[error("the pickle is cut off or damaged at byte {at}")]
    Damaged {
        /// Where.
        at: usize,
    },
    /// An instruction that no batch needs.
    #[error("the pickle has instruction 0x{code:02x} at byte {at}, which no CIFAR batch has")]
    Instruction {
        /// Where.
        at: usize,
        /// Which.
        code: u8,
    },
    /// A function or class that no batch needs. It was not called.
    #[error("the pickle names `{name}`, which no CIFAR batch has; nothing was executed")]
    Name {
        /// Module and name.
        name: String,
    },
    /// More values than a batch has.
    #[error("the pickle has more than {MOST_VALUES} values")]
    Size,
    /// A field is absent.
    #[error("the pickle is no dictionary with {expected}")]
    Field {
        /// The names that would have been accepted.
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
pub(super) struct Batch<'a> {
    pub(super) labels: Vec<i64>,
    /// Three planes of 32x32 bytes for each label.
    pub(super) pixels: Cow<'a, [u8]>,
}

const PIXELS: usize = 3 * 32 * 32;

/// Labels and pixels of a batch of CIFAR-10 (`labels`) or CIFAR-100 (`fine_labels`).
pub(super) fn batch<'a>(bytes: &'a [u8], labels: &'static str) -> Result<Batch<'a>, Fault> {
    let mut machine = Machine::run(bytes)?;
    let labels = {
        let list = machine.field(labels)?;
        machine.integers(list).ok_or(Fault::Kind {
            field: labels,
            expected: "a list of whole numbers",
        })?
    };
    let data = machine.field("data")?;
    let expected = labels.len().checked_mul(PIXELS);
    machine
        .pixels(data)
        .filter(|pixels| Some(pixels.len()) == expected)
        .map(|pixels| Batch { labels, pixels })
        .ok_or(Fault::Kind {
            field: "data",
            expected: "an array of 8-bit numbers with 3072 for each label",
        })
}

/// The names under `field` of `batches.meta` or `meta`.
pub(super) fn names(bytes: &[u8], field: &'static str) -> Result<Vec<String>, Fault> {
    let machine = Machine::run(bytes)?;
    let names = machine.field(field)?;
    let Value::List(names) = machine.value(names) else {
        return Err(Fault::Kind {
            field,
            expected: "a list of names",
        });
    };
    let text = |id: &usize| match machine.value(*id) {
        Value::Bytes(text) => String::from_utf8(text.to_vec()).ok(),
        _ => None,
    };
    names
        .iter()
        .map(text)
        .collect::<Option<_>>()
        .ok_or(Fault::Kind {
            field,
            expected: "a list of names",
        })
}

/// A value; others are named by their number in the machine.
enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// Text is kept as bytes: Python 2 has no other.
    Bytes(Cow<'a, [u8]>),
    List(Vec<usize>),
    Tuple(Vec<usize>),
    Dict(Vec<(usize, usize)>),
    Function(Function),
    /// The type of an array's numbers, such as `u1`.
    Type(Cow<'a, [u8]>),
    /// An array, empty until it is filled.
    Array(Option<Array>),
}

#[derive(Clone, Copy)]
enum Function {
    Reconstruct,
    FromBuffer,
    Scalar,
    NdArray,
    DType,
    Encode,
}

#[derive(Clone, Copy)]
struct Array {
    shape: usize,
    dtype: usize,
    data: usize,
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value<'a>>,
    stack: Vec<usize>,
    marks: Vec<usize>,
    memo: HashMap<usize, usize>,
}

impl<'a> Machine<'a> {
    /// Follows all instructions; the result is the last value on the stack.
    fn run(bytes: &'a [u8]) -> Result<Self, Fault> {
        let mut machine = Self {
            bytes,
            at: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        loop {
            let at = machine.at;
            let code = machine.take(1)?[0];
            if code == b'.' {
                return match machine.stack.len() {
                    0 => Err(Fault::Damaged { at }),
                    _ => Ok(machine),
                };
            }
            machine.step(code, at)?;
            if machine.values.len() > MOST_VALUES || machine.memo.len() > MOST_VALUES {
                return Err(Fault::Size);
            }
        }
    }

    fn step(&mut self, code: u8, at: usize) -> Result<(), Fault> {
        let damaged = Fault::Damaged { at };
        match code {
            // The protocol's number and the length of a frame, which say nothing about values.
            0x80 => _ = self.take(1)?,
            0x95 => _ = self.take(8)?,
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'J' => {
                let number = self.number(4)? as u32;
                self.push(Value::Int(i64::from(number.cast_signed())));
            }
            b'K' => self.int(1)?,
            b'M' => self.int(2)?,
            0x8a => {
                let size = self.number(1)?;
                let number = self.take(size)?;
                // Little-endian with a sign; longer ones do not occur.
                let bits = 8 * u32::try_from(number.len()).unwrap_or(u32::MAX);
                if bits > 64 {
                    return Err(damaged);
                }
                let value = number
                    .iter()
                    .rev()
                    .fold(0_u64, |n, b| n << 8 | u64::from(*b));
                let shift = 64 - bits;
                let value = if bits == 0 {
                    0
                } else {
                    (value << shift).cast_signed() >> shift
                };
                self.push(Value::Int(value));
            }
            b'U' | b'C' | 0x8c => self.text(1)?,
            b'T' | b'B' | b'X' => self.text(4)?,
            0x8d | 0x8e | 0x96 => self.text(8)?,
            b']' => self.push(Value::List(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            b')' => self.push(Value::Tuple(Vec::new())),
            0x85..=0x87 => {
                let items = self.pop(usize::from(code - 0x84)).ok_or(damaged)?;
                self.push(Value::Tuple(items));
            }
            b't' => {
                let items = self.pop_mark().ok_or(damaged)?;
                self.push(Value::Tuple(items));
            }
            b'q' => self.keep(1)?,
            b'r' => self.keep(4)?,
            0x94 => {
                let top = *self.stack.last().ok_or(damaged)?;
                self.memo.insert(self.memo.len(), top);
            }
            b'h' => self.recall(1)?,
            b'j' => self.recall(4)?,
            b'a' | b'e' => {
                let items = if code == b'a' {
                    self.pop(1)
                } else {
                    self.pop_mark()
                };
                let (items, list) = items.zip(self.stack.last()).ok_or(damaged)?;
                match self.values.get_mut(*list) {
                    Some(Value::List(list)) => list.extend(items),
                    _ => return Err(Fault::Damaged { at }),
                }
            }
            b's' | b'u' => {
                let items = if code == b's' {
                    self.pop(2)
                } else {
                    self.pop_mark()
                };
                let (items, dict) = items.zip(self.stack.last()).ok_or(damaged)?;
                match (self.values.get_mut(*dict), items.as_chunks::<2>()) {
                    (Some(Value::Dict(dict)), (pairs, [])) => {
                        dict.extend(pairs.iter().map(|[key, value]| (*key, *value)));
                    }
                    _ => return Err(Fault::Damaged { at }),
                }
            }
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.function(module, name)?;
            }
            0x93 => {
                let names = self.pop(2).ok_or(damaged)?;
                let [Value::Bytes(module), Value::Bytes(name)] =
                    [&self.values[names[0]], &self.values[names[1]]]
                else {
                    return Err(Fault::Damaged { at });
                };
                let (module, name) = (module.clone(), name.clone());
                self.function(&module, &name)?;
            }
            b'R' => {
                let made = self.reduced().ok_or(damaged)?;
                self.push(made);
            }
            b'b' => self.fill().ok_or(damaged)?,
            _ => return Err(Fault::Instruction { at, code }),
        }
        Ok(())
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Fault> {
        let end = self.at.checked_add(n);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or(Fault::Damaged { at: self.at })?;
        self.at += n;
        Ok(taken)
    }

    /// A little-endian number without a sign.
    fn number(&mut self, bytes: usize) -> Result<usize, Fault> {
        let at = self.at;
        let bytes = self.take(bytes)?.iter().rev();
        let number = bytes.fold(0_u64, |n, b| n << 8 | u64::from(*b));
        usize::try_from(number).map_err(|_| Fault::Damaged { at })
    }

    fn line(&mut self) -> Result<&'a [u8], Fault> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&byte| byte == b'\n');
        let line = self.take(end.ok_or(Fault::Damaged { at: self.at })?)?;
        self.take(1)?;
        Ok(line)
    }

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn int(&mut self, bytes: usize) -> Result<(), Fault> {
        let number = self.number(bytes)?;
        // Of one or two bytes.
        self.push(Value::Int(number.cast_signed() as i64));
        Ok(())
    }

    fn text(&mut self, length: usize) -> Result<(), Fault> {
        let length = self.number(length)?;
        let text = self.take(length)?;
        self.push(Value::Bytes(Cow::Borrowed(text)));
        Ok(())
    }

    /// The last `n` values, not reaching below the last mark.
    fn pop(&mut self, n: usize) -> Option<Vec<usize>> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let from = self
            .stack
            .len()
            .checked_sub(n)
            .filter(|from| *from >= floor)?;
        Some(self.stack.split_off(from))
    }

    fn pop_mark(&mut self) -> Option<Vec<usize>> {
        let from = self.marks.pop()?;
        Some(self.stack.split_off(from))
    }

    fn keep(&mut self, bytes: usize) -> Result<(), Fault> {
        let at = self.at;
        let key = self.number(bytes)?;
        let top = *self.stack.last().ok_or(Fault::Damaged { at })?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, bytes: usize) -> Result<(), Fault> {
        let at = self.at;
        let key = self.number(bytes)?;
        let kept = self.memo.get(&key).ok_or(Fault::Damaged { at })?;
        self.stack.push(*kept);
        // The stack grows without a new value.
        if self.stack.len() > MOST_VALUES {
            return Err(Fault::Size);
        }
        Ok(())
    }

    fn function(&mut self, module: &[u8], name: &[u8]) -> Result<(), Fault> {
        let function = match (module, name) {
            (b"numpy.core.multiarray" | b"numpy._core.multiarray", b"_reconstruct") => {
                Function::Reconstruct
            }
            (b"numpy.core.multiarray" | b"numpy._core.multiarray", b"scalar") => Function::Scalar,
            (b"numpy.core.numeric" | b"numpy._core.numeric", b"_frombuffer") => {
                Function::FromBuffer
            }
            (b"numpy", b"ndarray") => Function::NdArray,
            (b"numpy", b"dtype") => Function::DType,
            (b"_codecs", b"encode") => Function::Encode,
            _ => {
                let [module, name] = [module, name].map(String::from_utf8_lossy);
                return Err(Fault::Name {
                    name: format!("{module}.{name}"),
                });
            }
        };
        self.push(Value::Function(function));
        Ok(())
    }

    /// What a call of one of the known functions stands for.
    fn reduced(&mut self) -> Option<Value<'a>> {
        let call = self.pop(2)?;
        let [Value::Function(function), Value::Tuple(arguments)] =
            [&self.values[call[0]], &self.values[call[1]]]
        else {
            return None;
        };
        let bytes = |id: usize| match &self.values[id] {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        };
        match (function, &arguments[..]) {
            (Function::Reconstruct, &[class, _, _]) => {
                matches!(self.values[class], Value::Function(Function::NdArray))
                    .then_some(Value::Array(None))
            }
            (Function::FromBuffer, &[data, dtype, shape, order]) => (bytes(order)?.as_ref()
                == b"C")
                .then_some(Value::Array(Some(Array { shape, dtype, data }))),
            (Function::Scalar, &[dtype, data]) => match &self.values[dtype] {
                Value::Type(dtype) => match numbers(dtype, bytes(data)?)?[..] {
                    [number] => Some(Value::Int(number)),
                    _ => None,
                },
                _ => None,
            },
            (Function::DType, &[name, ..]) => Some(Value::Type(bytes(name)?.clone())),
            // How Python 3 writes bytes for Python 2: as text, one character for each.
            (Function::Encode, &[text, codec]) => {
                let text = std::str::from_utf8(bytes(text)?).ok()?;
                if bytes(codec)?.as_ref() != b"latin1" {
                    return None;
                }
                let encoded = text.chars().map(|c| u8::try_from(u32::from(c)).ok());
                Some(Value::Bytes(Cow::Owned(encoded.collect::<Option<_>>()?)))
            }
            _ => None,
        }
    }

    /// Gives an array its content, or a type its byte order.
    fn fill(&mut self) -> Option<()> {
        let state = self.pop(1)?[0];
        let object = *self.stack.last()?;
        let Value::Tuple(state) = &self.values[state] else {
            return None;
        };
        match (&self.values[object], &state[..]) {
            (Value::Array(None), &[_, shape, dtype, fortran, data]) => {
                if !matches!(self.values[fortran], Value::Bool(false) | Value::Int(0)) {
                    return None;
                }
                let array = Array { shape, dtype, data };
                self.values[object] = Value::Array(Some(array));
                Some(())
            }
            (Value::Type(_), &[_, order, ..]) => match &self.values[order] {
                Value::Bytes(order) if matches!(order.as_ref(), b"|" | b"<") => Some(()),
                _ => None,
            },
            _ => None,
        }
    }

    fn value(&self, id: usize) -> &Value<'a> {
        &self.values[id]
    }

    /// The value under a name in the dictionary that the file is.
    fn field(&self, name: &'static str) -> Result<usize, Fault> {
        let missing = Fault::Field { expected: name };
        let Some(Value::Dict(pairs)) = self.stack.last().map(|id| &self.values[*id]) else {
            return Err(missing);
        };
        let named = |key: usize| matches!(&self.values[key], Value::Bytes(key) if key.as_ref() == name.as_bytes());
        // As in Python, the last one counts.
        let found = pairs.iter().rev().find(|(key, _)| named(*key));
        found.map(|(_, value)| *value).ok_or(missing)
    }

    /// The numbers of a list or of an array with one axis.
    fn integers(&self, id: usize) -> Option<Vec<i64>> {
        match &self.values[id] {
            Value::List(items) => {
                let number = |id: &usize| match self.values[*id] {
                    Value::Int(number) => Some(number),
                    _ => None,
                };
                items.iter().map(number).collect()
            }
            Value::Array(Some(array)) => {
                let (dtype, bytes) = self.array(*array)?;
                numbers(dtype, bytes)
            }
            _ => None,
        }
    }

    /// The type and the bytes of an array.
    fn array(&self, array: Array) -> Option<(&[u8], &[u8])> {
        match (&self.values[array.dtype], &self.values[array.data]) {
            (Value::Type(dtype), Value::Bytes(bytes)) => Some((dtype, bytes)),
            _ => None,
        }
    }

    /// The bytes of an array `[n, 3072]`, `[n, 3, 32, 32]` or `[n * 3072]`, or plain bytes.
    fn pixels(&mut self, id: usize) -> Option<Cow<'a, [u8]>> {
        let data = match &self.values[id] {
            Value::Bytes(_) => id,
            Value::Array(Some(array)) => {
                let (dtype, _) = self.array(*array)?;
                let Value::Tuple(shape) = &self.values[array.shape] else {
                    return None;
                };
                let shape: Option<Vec<i64>> = shape
                    .iter()
                    .map(|id| match self.values[*id] {
                        Value::Int(side) => Some(side),
                        _ => None,
                    })
                    .collect();
                let planes = matches!(shape?[..], [_] | [_, 3072] | [_, 3, 32, 32]);
                (planes && dtype == b"u1").then_some(array.data)?
            }
            _ => return None,
        };
        match std::mem::replace(&mut self.values[data], Value::None) {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }
}

/// The little-endian whole numbers of a type.
fn numbers(dtype: &[u8], bytes: &[u8]) -> Option<Vec<i64>> {
    let size = match dtype {
        b"u1" => 1,
        b"i4" => 4,
        b"i8" => 8,
        _ => return None,
    };
    let number = |bytes: &[u8]| {
        let value = bytes
            .iter()
            .rev()
            .fold(0_u64, |n, b| n << 8 | u64::from(*b))
            .cast_signed();
        if size == 4 {
            i64::from(value as i32)
        } else {
            value
        }
    };
    let whole = bytes.len().is_multiple_of(size);
    whole.then(|| bytes.chunks_exact(size).map(number).collect())
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
        assert!(matches!(&read.pixels, Cow::Borrowed(p) if **p == [7; 3 * PIXELS]));
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
        let eight = b"cnumpy\ndtype\nU\x02i8\x89\x88\x87R(K\x03U\x01<NNNtb".as_slice();
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
        for (bytes, expect) in [
            (
                &b"cos\nsystem\n(U\x02idtR."[..],
                "the pickle names `os.system`, which no CIFAR batch has; nothing was executed",
            ),
            (
                b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",
                "the pickle names `builtins.eval`, which no CIFAR batch has; nothing was executed",
            ),
            (
                b"cnumpy\nload\n.",
                "the pickle names `numpy.load`, which no CIFAR batch has; nothing was executed",
            ),
            (
                b"\x80\x02}(U\x06labels]ibuiltins\nx\n.",
                "the pickle has instruction 0x69 at byte 13, which no CIFAR batch has",
            ),
            (
                b"P1\n.",
                "the pickle has instruction 0x50 at byte 0, which no CIFAR batch has",
            ),
            (b"", "the pickle is cut off or damaged at byte 0"),
            (b".", "the pickle is cut off or damaged at byte 0"),
            (
                b"\x80\x02}T\xff\xff\xff\xff",
                "the pickle is cut off or damaged at byte 8",
            ),
            (
                b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff.",
                "the pickle is cut off or damaged at byte 9",
            ),
            (b"h\x05.", "the pickle is cut off or damaged at byte 1"),
            (b"(tR.", "the pickle is cut off or damaged at byte 2"),
            (b"].", "the pickle is no dictionary with labels"),
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
        let growing = [&b"]q\0"[..], &b"h\0".repeat(MOST_VALUES + 1), b"."].concat();
        assert!(matches!(batch(&growing, "labels"), Err(Fault::Size)));
        let many = [b"N".repeat(MOST_VALUES + 1), b".".to_vec()].concat();
        assert!(matches!(batch(&many, "labels"), Err(Fault::Size)));
        // Lists that hold themselves and each other end like any other.
        assert!(batch(b"]q\0h\0a.", "labels").is_err());
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
