//! Pickle as data: a machine that walks the opcodes of PyTorch's checkpoints and builds inert values.
//!
//! A pickle is a program. This one reads it without running anything: a class or function is a name, looked up in a
//! list of the few that checkpoints need ([`Global`]); a call of one of them makes the value that it stands for if the
//! arguments are exactly those that PyTorch or NumPy write; everything else is refused by name and byte offset.
//! Nothing is allocated before the bytes for it were seen, and every count has a cap ([`Limits`]), so the memory that a
//! file takes is a small multiple of its size.

use std::fmt;
use std::rc::Rc;

/// What a pickle may use at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Values on the stack, in the memo and inside of containers, all together.
    pub values: usize,
    /// Bytes of all texts and byte strings.
    pub bytes: usize,
}

impl Default for Limits {
    /// Enough for an attack folder with 60,000 poisoned images, and at most some 150 MB of memory.
    fn default() -> Self {
        Self {
            values: 2_000_000,
            bytes: 64 << 20,
        }
    }
}

/// Why a pickle was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {offset} of the pickle")]
pub struct PickleError {
    /// What was found and what was expected.
    pub what: String,
    /// Where the opcode stands.
    pub offset: usize,
}

/// A class or function that checkpoints name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Global {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`
    RebuildParameter,
    /// `torch.FloatStorage` and its kin.
    Storage(Element),
    /// `torch.Size`
    Size,
    /// `numpy.core.multiarray._reconstruct`
    Reconstruct,
    /// `numpy.core.multiarray.scalar`
    Scalar,
    /// `numpy.ndarray`
    NdArray,
    /// `numpy.dtype`
    Dtype,
    /// `_codecs.encode`
    Encode,
}

impl Global {
    fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", "Size") => Self::Size,
            ("torch", storage) => Self::Storage(Element::of_storage(storage)?),
            ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => {
                Self::Reconstruct
            }
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Self::Scalar,
            ("numpy", "ndarray") => Self::NdArray,
            ("numpy", "dtype") => Self::Dtype,
            ("_codecs", "encode") => Self::Encode,
            _ => return None,
        })
    }
}

/// Type of the elements of a tensor or array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Element {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Element {
    fn of_storage(name: &str) -> Option<Self> {
        Some(match name {
            "DoubleStorage" => Self::F64,
            "FloatStorage" => Self::F32,
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::Bf16,
            "LongStorage" => Self::I64,
            "IntStorage" => Self::I32,
            "ShortStorage" => Self::I16,
            "CharStorage" => Self::I8,
            "ByteStorage" => Self::U8,
            "BoolStorage" => Self::Bool,
            _ => return None,
        })
    }

    fn of_numpy(code: &str) -> Option<Self> {
        Some(match code {
            "f8" => Self::F64,
            "f4" => Self::F32,
            "f2" => Self::F16,
            "i8" => Self::I64,
            "i4" => Self::I32,
            "i2" => Self::I16,
            "i1" => Self::I8,
            "u1" => Self::U8,
            "b1" => Self::Bool,
            _ => return None,
        })
    }

    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }
}

/// A value; containers are shared, as in Python, and live in the [`Pickle`].
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `None`
    None,
    /// `True` or `False`
    Bool(bool),
    /// A whole number of at most 64 bits.
    Int(i64),
    /// A number.
    Float(f64),
    /// `str`
    Text(Rc<str>),
    /// `bytes`
    Bytes(Rc<[u8]>),
    /// A class or function.
    Global(Global),
    /// A container or object of the pickle.
    ///
    /// A number instead of a pointer, so that no nesting, however deep, is ever walked to its end.
    Object(usize),
}

/// What a [`Value::Object`] is.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A list.
    List(Vec<Value>),
    /// A tuple.
    Tuple(Vec<Value>),
    /// A dictionary, plain or ordered, in order.
    Dict(Vec<(Value, Value)>),
    /// A storage that lies elsewhere in the checkpoint.
    Storage(Rc<Storage>),
    /// A tensor.
    Tensor(Box<Tensor>),
    /// `numpy.dtype`, and whether its byte order was told.
    Dtype(Element, bool),
    /// An array; `None` until its state was set.
    Array(Option<Box<Array>>),
}

/// A storage: one block of elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Type of its elements.
    pub element: Element,
    /// Name of its data in the checkpoint.
    pub key: Rc<str>,
    /// Number of elements.
    pub len: usize,
}

/// A view of a storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Where the elements are.
    pub storage: Rc<Storage>,
    /// Its first element.
    pub offset: usize,
    /// Sizes.
    pub shape: Vec<usize>,
    /// Distance of neighbours along each axis.
    pub stride: Vec<usize>,
}

/// A NumPy array in memory order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array {
    /// Type of its elements.
    pub element: Element,
    /// Sizes.
    pub shape: Vec<usize>,
    /// Little-endian elements, last axis fastest.
    pub data: Rc<[u8]>,
}

/// A read pickle.
#[derive(Debug)]
pub struct Pickle {
    objects: Vec<Object>,
    /// What it holds.
    pub root: Value,
    /// Bytes from the start of the input to behind its end.
    pub end: usize,
}

impl Pickle {
    /// Reads one pickle from the start of `bytes`.
    pub fn read(bytes: &[u8], limits: Limits) -> Result<Self, PickleError> {
        Machine::new(bytes, limits).run()
    }

    /// The object that a value refers to.
    pub fn object(&self, value: &Value) -> Option<&Object> {
        match value {
            Value::Object(i) => self.objects.get(*i),
            _ => None,
        }
    }

    /// All storages that it refers to; one may come several times.
    pub fn storages(&self) -> impl Iterator<Item = &Storage> {
        self.objects.iter().filter_map(|object| match object {
            Object::Storage(storage) => Some(&**storage),
            _ => None,
        })
    }

    /// The entries of a dictionary.
    pub fn dict(&self, value: &Value) -> Option<&[(Value, Value)]> {
        match self.object(value)? {
            Object::Dict(entries) => Some(entries),
            _ => None,
        }
    }

    /// The elements of a list or tuple.
    pub fn sequence(&self, value: &Value) -> Option<&[Value]> {
        match self.object(value)? {
            Object::List(items) | Object::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// What kind of thing a value is, for messages.
    pub fn kind(&self, value: &Value) -> &'static str {
        match value {
            Value::None => "None",
            Value::Bool(_) => "a truth value",
            Value::Int(_) => "a whole number",
            Value::Float(_) => "a number",
            Value::Text(_) => "a text",
            Value::Bytes(_) => "a byte string",
            Value::Global(_) => "a class",
            Value::Object(i) => match self.objects.get(*i) {
                Some(Object::List(_)) => "a list",
                Some(Object::Tuple(_)) => "a tuple",
                Some(Object::Dict(_)) => "a dictionary",
                Some(Object::Storage(_)) => "a storage",
                Some(Object::Tensor(_)) => "a tensor",
                Some(Object::Dtype(..)) => "a dtype",
                Some(Object::Array(_)) => "an array",
                None => "nothing",
            },
        }
    }
}

fn natural(value: &Value) -> Option<usize> {
    match value {
        Value::Int(n) => usize::try_from(*n).ok(),
        _ => None,
    }
}

/// Number of elements with these sizes; `None` where it does not fit.
pub fn elements(shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1usize, |product, n| product.checked_mul(*n))
}

/// Highest protocol that is understood; PyTorch writes 2.
const PROTOCOL: u8 = 4;

/// Most axes of a tensor or array.
const AXES: usize = 8;

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where the opcode under way stands.
    opcode: usize,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: Vec<Option<Value>>,
    objects: Vec<Object>,
    /// What is left of the limits.
    left: Limits,
}

type Step<T> = Result<T, PickleError>;

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8], left: Limits) -> Self {
        Self {
            bytes,
            at: 0,
            opcode: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Vec::new(),
            objects: Vec::new(),
            left,
        }
    }

    fn refuse<T>(&self, what: impl fmt::Display) -> Step<T> {
        Err(PickleError {
            what: what.to_string(),
            offset: self.opcode,
        })
    }

    fn take(&mut self, len: usize) -> Step<&'a [u8]> {
        let end = self.at.checked_add(len).filter(|&e| e <= self.bytes.len());
        let Some(end) = end else {
            let rest = self.bytes.len() - self.at;
            return self.refuse(format_args!("{len} bytes expected, {rest} left"));
        };
        let found = &self.bytes[self.at..end];
        self.at = end;
        Ok(found)
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let bytes = self.take(N)?;
        Ok(bytes.try_into().expect("as many were taken"))
    }

    fn byte(&mut self) -> Step<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn length(&mut self) -> Step<usize> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn long_length(&mut self) -> Step<usize> {
        let len = u64::from_le_bytes(self.array()?);
        match usize::try_from(len) {
            Ok(len) => Ok(len),
            Err(_) => self.refuse("a length of over 64 bits"),
        }
    }

    /// The text up to the next line feed.
    fn line(&mut self) -> Step<&'a str> {
        const LONGEST: usize = 200;
        let rest = &self.bytes[self.at..self.bytes.len().min(self.at + LONGEST)];
        let Some(len) = rest.iter().position(|b| *b == b'\n') else {
            return self.refuse("a name without end");
        };
        let line = self.take(len + 1)?;
        match std::str::from_utf8(&line[..len]) {
            Ok(line) => Ok(line),
            Err(_) => self.refuse("a name that is not UTF-8"),
        }
    }

    fn text(&mut self, len: usize) -> Step<Value> {
        let bytes = self.take(len)?;
        self.spend_bytes(len)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Value::Text(text.into())),
            Err(_) => self.refuse("a text that is not UTF-8"),
        }
    }

    fn spend(&mut self, values: usize) -> Step<()> {
        match self.left.values.checked_sub(values) {
            Some(left) => {
                self.left.values = left;
                Ok(())
            }
            None => self.refuse("more values than a checkpoint holds"),
        }
    }

    fn spend_bytes(&mut self, bytes: usize) -> Step<()> {
        match self.left.bytes.checked_sub(bytes) {
            Some(left) => {
                self.left.bytes = left;
                Ok(())
            }
            None => self.refuse("more text than a checkpoint holds"),
        }
    }

    fn push(&mut self, value: Value) -> Step<()> {
        self.spend(1)?;
        self.stack.push(value);
        Ok(())
    }

    /// Makes an object and pushes it.
    fn make(&mut self, object: Object) -> Step<()> {
        self.objects.push(object);
        self.push(Value::Object(self.objects.len() - 1))
    }

    fn pop(&mut self) -> Step<Value> {
        // A mark hides what is below it.
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() > floor
            && let Some(value) = self.stack.pop()
        {
            return Ok(value);
        }
        self.refuse("a value expected on an empty stack")
    }

    /// Everything above the last mark.
    fn pop_to_mark(&mut self) -> Step<Vec<Value>> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => self.refuse("a mark expected"),
        }
    }

    /// The object on top of the stack, which stays there.
    fn top_object(&mut self) -> Step<usize> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(Value::Object(i)) if self.stack.len() > floor => Ok(*i),
            _ => self.refuse("a container expected on the stack"),
        }
    }

    fn append(&mut self, items: Vec<Value>) -> Step<()> {
        let i = self.top_object()?;
        self.spend(items.len())?;
        match &mut self.objects[i] {
            Object::List(list) => {
                list.extend(items);
                Ok(())
            }
            _ => self.refuse("a list expected to append to"),
        }
    }

    fn set_items(&mut self, items: Vec<Value>) -> Step<()> {
        if !items.len().is_multiple_of(2) {
            return self.refuse("a key without value");
        }
        let i = self.top_object()?;
        self.spend(items.len())?;
        match &mut self.objects[i] {
            Object::Dict(entries) => {
                let mut items = items.into_iter();
                while let (Some(key), Some(value)) = (items.next(), items.next()) {
                    entries.push((key, value));
                }
                Ok(())
            }
            _ => self.refuse("a dictionary expected to set items of"),
        }
    }

    fn memoise(&mut self, i: usize) -> Step<()> {
        // PyTorch numbers in order, so a gap is a forgery, and would cost memory.
        if i > self.memo.len() {
            return self.refuse(format_args!("memo entry {i} after {}", self.memo.len()));
        }
        let Some(value) = self.stack.last().cloned() else {
            return self.refuse("a value expected to remember");
        };
        if i == self.memo.len() {
            self.spend(1)?;
            self.memo.push(Some(value));
        } else {
            self.memo[i] = Some(value);
        }
        Ok(())
    }

    fn recall(&mut self, i: usize) -> Step<()> {
        match self.memo.get(i).cloned().flatten() {
            Some(value) => self.push(value),
            None => self.refuse(format_args!("memo entry {i} that was never set")),
        }
    }

    fn global(&mut self, module: &str, name: &str) -> Step<()> {
        match Global::find(module, name) {
            Some(global) => self.push(Value::Global(global)),
            None => self.refuse(format_args!(
                "`{}.{}` is not allowed in a checkpoint",
                module.escape_debug(),
                name.escape_debug()
            )),
        }
    }

    /// Reads opcodes up to the end of the pickle.
    fn run(mut self) -> Step<Pickle> {
        loop {
            self.opcode = self.at;
            let opcode = self.byte()?;
            match opcode {
                0x80 => {
                    let protocol = self.byte()?;
                    if protocol > PROTOCOL {
                        return self.refuse(format_args!("pickle protocol {protocol}"));
                    }
                }
                // Frames only tell how to read ahead.
                0x95 => drop(self.take(8)?),
                b'.' => {
                    let root = self.pop()?;
                    if !self.stack.is_empty() || !self.marks.is_empty() {
                        return self.refuse("values left over at the end");
                    }
                    return Ok(Pickle {
                        objects: self.objects,
                        root,
                        end: self.at,
                    });
                }
                b'(' => {
                    self.spend(1)?;
                    self.marks.push(self.stack.len());
                }
                b'0' => drop(self.pop()?),
                b'N' => self.push(Value::None)?,
                0x88 => self.push(Value::Bool(true))?,
                0x89 => self.push(Value::Bool(false))?,
                b'J' => {
                    let n = i32::from_le_bytes(self.array()?);
                    self.push(Value::Int(n.into()))?;
                }
                b'K' => {
                    let n = self.byte()?;
                    self.push(Value::Int(n.into()))?;
                }
                b'M' => {
                    let n = u16::from_le_bytes(self.array()?);
                    self.push(Value::Int(n.into()))?;
                }
                0x8a => self.long()?,
                b'G' => {
                    let x = f64::from_be_bytes(self.array()?);
                    self.push(Value::Float(x))?;
                }
                b'X' | 0x8c | 0x8d => {
                    let len = match opcode {
                        b'X' => self.length()?,
                        0x8c => self.byte()?.into(),
                        _ => self.long_length()?,
                    };
                    let text = self.text(len)?;
                    self.push(text)?;
                }
                b'B' | b'C' | 0x8e => {
                    let len = match opcode {
                        b'B' => self.length()?,
                        b'C' => self.byte()?.into(),
                        _ => self.long_length()?,
                    };
                    let bytes = self.take(len)?;
                    self.spend_bytes(len)?;
                    self.push(Value::Bytes(bytes.into()))?;
                }
                b']' => self.make(Object::List(Vec::new()))?,
                b'}' => self.make(Object::Dict(Vec::new()))?,
                b')' => self.make(Object::Tuple(Vec::new()))?,
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.append(items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.set_items(vec![key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.set_items(items)?;
                }
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.tuple(items)?;
                }
                0x85..=0x87 => {
                    let mut items = Vec::new();
                    for _ in 0x84..opcode {
                        items.push(self.pop()?);
                    }
                    items.reverse();
                    self.tuple(items)?;
                }
                b'c' => {
                    let module = self.line()?;
                    let name = self.line()?;
                    self.global(module, name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    match (&module, &name) {
                        (Value::Text(module), Value::Text(name)) => self.global(module, name)?,
                        _ => return self.refuse("two names expected for a class"),
                    }
                }
                b'R' => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    // No function takes more; copying a large tuple again and again would take for ever.
                    let arguments = self.tuple_items(&arguments).filter(|a| a.len() < 8);
                    let arguments = arguments.map(<[Value]>::to_vec);
                    match (function, arguments) {
                        (Value::Global(function), Some(arguments)) => {
                            self.call(function, &arguments)?;
                        }
                        _ => return self.refuse("a function and its arguments expected"),
                    }
                }
                b'b' => {
                    let state = self.pop()?;
                    self.build(&state)?;
                }
                b'q' => {
                    let i = self.byte()?;
                    self.memoise(i.into())?;
                }
                b'r' => {
                    let i = self.length()?;
                    self.memoise(i)?;
                }
                0x94 => self.memoise(self.memo.len())?,
                b'h' => {
                    let i = self.byte()?;
                    self.recall(i.into())?;
                }
                b'j' => {
                    let i = self.length()?;
                    self.recall(i)?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    self.persistent(&id)?;
                }
                other => {
                    return self.refuse(format_args!("opcode {other:#04x} is not allowed"));
                }
            }
        }
    }

    /// A whole number in as few bytes as it needs. PyTorch's old files begin with one of ten bytes, which is kept as a
    /// byte string.
    fn long(&mut self) -> Step<()> {
        let len = usize::from(self.byte()?);
        let bytes = self.take(len)?;
        if len > 8 {
            self.spend_bytes(len)?;
            return self.push(Value::Bytes(bytes.into()));
        }
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut all = [if negative { 0xff } else { 0 }; 8];
        all[..len].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(all)))
    }

    fn tuple(&mut self, items: Vec<Value>) -> Step<()> {
        self.spend(items.len())?;
        self.make(Object::Tuple(items))
    }

    /// The elements of a tuple.
    fn tuple_items(&self, value: &Value) -> Option<&[Value]> {
        match value {
            Value::Object(i) => match &self.objects[*i] {
                Object::Tuple(items) => Some(items),
                _ => None,
            },
            _ => None,
        }
    }

    /// The whole numbers of a tuple, if it holds nothing else.
    fn sizes(&self, value: &Value) -> Option<Vec<usize>> {
        let items = self.tuple_items(value)?;
        if items.len() > AXES {
            return None;
        }
        items.iter().map(natural).collect()
    }

    /// A reference to what lies outside of the pickle: `('storage', type, key, location, elements[, view])`.
    fn persistent(&mut self, id: &Value) -> Step<()> {
        let storage = match self.tuple_items(id) {
            Some(
                [
                    Value::Text(word),
                    Value::Global(Global::Storage(element)),
                    Value::Text(key),
                    Value::Text(_),
                    len,
                ]
                | [
                    Value::Text(word),
                    Value::Global(Global::Storage(element)),
                    Value::Text(key),
                    Value::Text(_),
                    len,
                    Value::None,
                ],
            ) if &**word == "storage" => natural(len).map(|len| Storage {
                element: *element,
                key: Rc::clone(key),
                len,
            }),
            _ => None,
        };
        match storage {
            Some(storage) => self.make(Object::Storage(Rc::new(storage))),
            None => self.refuse("a persistent id that is no storage"),
        }
    }

    fn call(&mut self, function: Global, arguments: &[Value]) -> Step<()> {
        let made = match (function, arguments) {
            (Global::OrderedDict, []) => Some(Object::Dict(Vec::new())),
            (
                Global::RebuildTensor,
                [storage, offset, shape, stride, Value::Bool(_), hooks]
                | [
                    storage,
                    offset,
                    shape,
                    stride,
                    Value::Bool(_),
                    hooks,
                    Value::None,
                ],
            ) => self
                .tensor(storage, offset, shape, stride)
                .filter(|_| self.is_empty_dict(hooks)),
            // A parameter is the tensor that it holds.
            (Global::RebuildParameter, [Value::Object(i), Value::Bool(_), hooks])
                if matches!(self.objects[*i], Object::Tensor(_)) && self.is_empty_dict(hooks) =>
            {
                return self.push(Value::Object(*i));
            }
            (Global::Size, [sizes]) if self.sizes(sizes).is_some() => {
                return self.push(sizes.clone());
            }
            (Global::Encode, [Value::Text(text), Value::Text(codec)]) if &**codec == "latin1" => {
                self.spend_bytes(text.len())?;
                let bytes: Option<Vec<u8>> = text
                    .chars()
                    .map(|c| u8::try_from(u32::from(c)).ok())
                    .collect();
                match bytes {
                    Some(bytes) => return self.push(Value::Bytes(bytes.into())),
                    None => return self.refuse("a text that is not Latin-1"),
                }
            }
            (Global::Dtype, [Value::Text(code), Value::Bool(false), Value::Bool(true)]) => {
                match Element::of_numpy(code) {
                    Some(element) => Some(Object::Dtype(element, element.bytes() == 1)),
                    None => {
                        return self.refuse(format_args!("NumPy type `{}`", code.escape_debug()));
                    }
                }
            }
            (Global::Reconstruct, [Value::Global(Global::NdArray), shape, Value::Bytes(code)])
                if self.tuple_items(shape) == Some(&[Value::Int(0)]) && &**code == b"b" =>
            {
                Some(Object::Array(None))
            }
            (Global::Scalar, [dtype, Value::Bytes(bytes)]) => match self.scalar(dtype, bytes) {
                Some(value) => return self.push(value),
                None => None,
            },
            _ => None,
        };
        match made {
            Some(object) => self.make(object),
            None => self.refuse(format_args!(
                "{function:?} with arguments that PyTorch does not give it"
            )),
        }
    }

    fn is_empty_dict(&self, value: &Value) -> bool {
        matches!(value, Value::Object(i) if matches!(&self.objects[*i], Object::Dict(entries) if entries.is_empty()))
    }

    /// A view of a storage that lies inside of it.
    fn tensor(
        &self,
        storage: &Value,
        offset: &Value,
        shape: &Value,
        stride: &Value,
    ) -> Option<Object> {
        let Value::Object(i) = storage else {
            return None;
        };
        let Object::Storage(storage) = &self.objects[*i] else {
            return None;
        };
        let (offset, shape, stride) = (natural(offset)?, self.sizes(shape)?, self.sizes(stride)?);
        if shape.len() != stride.len() {
            return None;
        }
        if elements(&shape)? > 0 {
            let steps = shape.iter().zip(&stride);
            let last = steps.into_iter().try_fold(offset, |sum, (n, step)| {
                sum.checked_add((n - 1).checked_mul(*step)?)
            })?;
            if last >= storage.len {
                return None;
            }
        }
        Some(Object::Tensor(Box::new(Tensor {
            storage: Rc::clone(storage),
            offset,
            shape,
            stride,
        })))
    }

    fn scalar(&self, dtype: &Value, bytes: &[u8]) -> Option<Value> {
        let Value::Object(i) = dtype else {
            return None;
        };
        Some(match (&self.objects[*i], bytes.len()) {
            (Object::Dtype(Element::I64, true), 8) => {
                Value::Int(i64::from_le_bytes(bytes.try_into().ok()?))
            }
            (Object::Dtype(Element::I32, true), 4) => {
                Value::Int(i32::from_le_bytes(bytes.try_into().ok()?).into())
            }
            (Object::Dtype(Element::F64, true), 8) => {
                Value::Float(f64::from_le_bytes(bytes.try_into().ok()?))
            }
            (Object::Dtype(Element::F32, true), 4) => {
                Value::Float(f32::from_le_bytes(bytes.try_into().ok()?).into())
            }
            _ => return None,
        })
    }

    /// Sets the state of the object on top of the stack.
    fn build(&mut self, state: &Value) -> Step<()> {
        let i = self.top_object()?;
        let object = match (&self.objects[i], self.tuple_items(state)) {
            // PyTorch hangs `_metadata` (versions of layers) on a state dict; nothing here depends on it.
            (Object::Dict(_), None) if matches!(state, Value::Object(_)) => return Ok(()),
            (Object::Dtype(element, _), Some(state)) => {
                is_dtype_state(state).then_some(Object::Dtype(*element, true))
            }
            (Object::Array(None), Some(state)) => self
                .array_state(state)
                .map(|array| Object::Array(Some(Box::new(array)))),
            _ => return self.refuse("state for an object that takes none"),
        };
        match object {
            Some(object) => {
                self.objects[i] = object;
                Ok(())
            }
            None => self.refuse("a state that NumPy does not write"),
        }
    }

    /// `(1, shape, dtype, fortran order, data)`.
    fn array_state(&self, state: &[Value]) -> Option<Array> {
        let [
            Value::Int(1),
            shape,
            Value::Object(dtype),
            Value::Bool(false),
            Value::Bytes(data),
        ] = state
        else {
            return None;
        };
        let (Object::Dtype(element, true), shape) = (&self.objects[*dtype], self.sizes(shape)?)
        else {
            return None;
        };
        let bytes = elements(&shape)?.checked_mul(element.bytes())?;
        (bytes == data.len()).then(|| Array {
            element: *element,
            shape,
            data: Rc::clone(data),
        })
    }
}

/// `(3, '<', None, None, None, -1, -1, 0)`; `|` where there is no order.
fn is_dtype_state(state: &[Value]) -> bool {
    matches!(
        state,
        [
            Value::Int(3 | 4),
            Value::Text(order),
            Value::None,
            Value::None,
            Value::None,
            Value::Int(-1),
            Value::Int(-1),
            Value::Int(0),
        ] if matches!(&**order, "<" | "|")
    )
}
