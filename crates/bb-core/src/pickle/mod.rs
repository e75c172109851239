//! Pickle as data: a machine that walks the opcodes of PyTorch's checkpoints and builds inert values.
//!
//! A pickle is a program. This one reads it without running anything: a class or function is a name, looked up in a
//! list of the few that checkpoints need ([`Global`]); a call of one of them makes the value that it stands for if the
//! arguments are of the kinds that PyTorch, NumPy or Python write; everything else is refused by name and byte offset.
//! The list is that of `torch.load(weights_only=True)` as far as its tensors are read here, with NumPy's arrays and
//! numbers, and what Python 2 and protocols 1 to 5 write for the same values.
//! Nothing is allocated before the bytes for it were seen, and every count has a cap ([`Limits`]), so the memory that a
//! file takes is a small multiple of its size.

mod global;

use global::UNREAD;
use std::fmt;
use std::rc::Rc;

pub use global::{Element, Global};

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
    /// What whoever made the file can do about it.
    pub hint: Option<&'static str>,
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
    /// A dictionary, plain, ordered, of defaults or of counts, in order.
    Dict(Vec<(Value, Value)>),
    /// A set, frozen or not. What it holds is not compared, so one value may come twice.
    Set(Vec<Value>),
    /// A storage that lies elsewhere in the checkpoint.
    Storage(Rc<Storage>),
    /// A tensor.
    Tensor(Box<Tensor>),
    /// `numpy.dtype`, and whether its byte order was told.
    Dtype(Element, bool),
    /// An array; `None` until its state was set.
    Array(Option<Box<Array>>),
    /// Something that nothing here needs: what it is, for messages. Its content is not kept.
    Opaque(&'static str),
}

/// A storage: one block of elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Type of its elements; bytes where it has none of its own.
    pub element: Element,
    /// Whether its type is its own.
    pub typed: bool,
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
    /// Whether each element counts with the other sign, as PyTorch marks views of conjugates.
    pub negated: bool,
}

/// A NumPy array in memory order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array {
    /// Type of its elements.
    pub element: Element,
    /// Sizes.
    pub shape: Vec<usize>,
    /// Whether the first axis runs fastest (Fortran's order), not the last one.
    pub fortran: bool,
    /// Little-endian elements.
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
            Value::Global(Global::TorchDtype(_)) => "a type of elements",
            Value::Global(_) => "a class",
            Value::Object(i) => match self.objects.get(*i) {
                Some(Object::List(_)) => "a list",
                Some(Object::Tuple(_)) => "a tuple",
                Some(Object::Dict(_)) => "a dictionary",
                Some(Object::Set(_)) => "a set",
                Some(Object::Storage(_)) => "a storage",
                Some(Object::Tensor(_)) => "a tensor",
                Some(Object::Dtype(..)) => "a dtype",
                Some(Object::Array(_)) => "an array",
                Some(Object::Opaque(kind)) => kind,
                None => "nothing",
            },
        }
    }
}

/// The bytes of a string, which Python 2 does not tell from text.
fn raw(value: &Value) -> Option<&[u8]> {
    match value {
        Value::Bytes(bytes) => Some(bytes),
        Value::Text(text) => Some(text.as_bytes()),
        _ => None,
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

/// Highest protocol that is understood; PyTorch writes 2 unless it is told otherwise.
const PROTOCOL: u8 = 5;

/// What to do about a class that is not in the list.
const ONLY_TENSORS: &str =
    "only tensors and plain values are read; have `model.state_dict()` saved, and nothing else";

/// The beginning of a text of a file, for messages: at most 80 characters, and none that moves a cursor.
pub fn short(text: &str) -> String {
    const MOST: usize = 80;
    let mut cut: String = text
        .chars()
        .take(MOST)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(MOST).is_some() {
        cut.push_str("...");
    }
    cut
}

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
            hint: None,
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

    /// A number up to the next line feed.
    fn number<T: std::str::FromStr>(&mut self, expected: &str) -> Step<T> {
        match self.line()?.parse() {
            Ok(number) => Ok(number),
            Err(_) => self.refuse(format_args!("a line that is not {expected}")),
        }
    }

    /// A string of Python 2: text as far as one can tell.
    fn old_text(&mut self, len: usize) -> Step<Value> {
        let bytes = self.take(len)?;
        self.spend_bytes(len)?;
        Ok(match std::str::from_utf8(bytes) {
            Ok(text) => Value::Text(text.into()),
            Err(_) => Value::Bytes(bytes.into()),
        })
    }

    fn bytes(&mut self, len: usize) -> Step<()> {
        let bytes = self.take(len)?;
        self.spend_bytes(len)?;
        self.push(Value::Bytes(bytes.into()))
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

    /// Makes an object; whoever pushes it pays for it.
    fn new_object(&mut self, object: Object) -> Value {
        self.objects.push(object);
        Value::Object(self.objects.len() - 1)
    }

    /// Makes an object and pushes it.
    fn make(&mut self, object: Object) -> Step<()> {
        let made = self.new_object(object);
        self.push(made)
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

    fn add_items(&mut self, items: Vec<Value>) -> Step<()> {
        let i = self.top_object()?;
        self.spend(items.len())?;
        match &mut self.objects[i] {
            Object::Set(set) => {
                set.extend(items);
                Ok(())
            }
            _ => self.refuse("a set expected to add to"),
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
        // Everybody numbers in order, so a gap is a forgery, and would cost memory. Python 2 begins with one.
        if i == 1 && self.memo.is_empty() {
            self.memo.push(None);
        }
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
        if let Some(global) = Global::find(module, name) {
            return self.push(Value::Global(global));
        }
        let unread = UNREAD.iter().find(|(known, _)| *known == name);
        if let Some((_, what)) = unread.filter(|_| module == "torch._utils") {
            return self.refuse(format_args!(
                "`{module}.{name}` makes {what}, which is not read"
            ));
        }
        Err(PickleError {
            what: format!("`{}.{}` is not allowed", short(module), short(name)),
            offset: self.opcode,
            hint: Some(ONLY_TENSORS),
        })
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
                b'1' => drop(self.pop_to_mark()?),
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
                0x8a => {
                    let len = self.byte()?;
                    self.long(len.into())?;
                }
                0x8b => {
                    let len = self.length()?;
                    self.long(len)?;
                }
                b'I' => {
                    let value = match self.line()? {
                        "00" => Value::Bool(false),
                        "01" => Value::Bool(true),
                        number => match number.parse() {
                            Ok(number) => Value::Int(number),
                            Err(_) => return self.refuse("a line that is not a number of 64 bits"),
                        },
                    };
                    self.push(value)?;
                }
                b'L' => {
                    let line = self.line()?;
                    match line.strip_suffix('L').unwrap_or(line).parse() {
                        Ok(number) => self.push(Value::Int(number))?,
                        Err(_) => return self.refuse("a line that is not a number of 64 bits"),
                    }
                }
                b'F' => {
                    let number = self.number("a number")?;
                    self.push(Value::Float(number))?;
                }
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
                b'U' | b'T' => {
                    let len = match opcode {
                        b'U' => self.byte()?.into(),
                        _ => self.length()?,
                    };
                    let text = self.old_text(len)?;
                    self.push(text)?;
                }
                b'B' | b'C' | 0x8e | 0x96 => {
                    let len = match opcode {
                        b'B' => self.length()?,
                        b'C' => self.byte()?.into(),
                        _ => self.long_length()?,
                    };
                    self.bytes(len)?;
                }
                0x97 | 0x98 => {
                    return self.refuse("a buffer that lies outside of the file");
                }
                b']' => self.make(Object::List(Vec::new()))?,
                b'}' => self.make(Object::Dict(Vec::new()))?,
                b')' => self.make(Object::Tuple(Vec::new()))?,
                0x8f => self.make(Object::Set(Vec::new()))?,
                b'l' => {
                    let items = self.pop_to_mark()?;
                    self.spend(items.len())?;
                    self.make(Object::List(items))?;
                }
                b'd' => {
                    let items = self.pop_to_mark()?;
                    self.make(Object::Dict(Vec::new()))?;
                    self.set_items(items)?;
                }
                0x90 => {
                    let items = self.pop_to_mark()?;
                    self.add_items(items)?;
                }
                0x91 => {
                    let items = self.pop_to_mark()?;
                    self.spend(items.len())?;
                    self.make(Object::Set(items))?;
                }
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
                    let arguments = self.arguments(&arguments);
                    match (function, arguments) {
                        (Value::Global(function), Some(arguments)) => {
                            self.call(function, &arguments)?;
                        }
                        _ => return self.refuse("a function and its arguments expected"),
                    }
                }
                0x81 => {
                    let (arguments, class) = (self.pop()?, self.pop()?);
                    match (class, self.arguments(&arguments)) {
                        (Value::Global(Global::Namespace), Some(arguments))
                            if arguments.is_empty() =>
                        {
                            self.make(Object::Opaque("an argparse.Namespace"))?;
                        }
                        _ => return self.refuse("a new object of a class that makes none here"),
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
                b'p' => {
                    let i = self.number("a place in the memo")?;
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
                b'g' => {
                    let i = self.number("a place in the memo")?;
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
    fn long(&mut self, len: usize) -> Step<()> {
        if len > 8 {
            return self.bytes(len);
        }
        let bytes = self.take(len)?;
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut all = [if negative { 0xff } else { 0 }; 8];
        all[..len].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(all)))
    }

    fn tuple(&mut self, items: Vec<Value>) -> Step<()> {
        self.spend(items.len())?;
        self.make(Object::Tuple(items))
    }

    /// A copy of the arguments of a call. No function takes more; copying a large tuple again and again would take for
    /// ever.
    fn arguments(&self, value: &Value) -> Option<Vec<Value>> {
        let arguments = self.tuple_items(value).filter(|a| a.len() <= 8);
        arguments.map(<[Value]>::to_vec)
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
                    Value::Global(class),
                    Value::Text(key),
                    Value::Text(_),
                    len,
                    view @ ..,
                ],
            ) if &**word == "storage" && view.len() <= 1 => {
                if view.iter().any(|view| *view != Value::None) {
                    return self.refuse("a storage within another one, which is not read");
                }
                let element = match class {
                    Global::Storage(element) => Some(*element),
                    Global::UntypedStorage => Some(Element::U8),
                    _ => None,
                };
                element.zip(natural(len)).map(|(element, len)| Storage {
                    element,
                    typed: *class != Global::UntypedStorage,
                    key: Rc::clone(key),
                    len,
                })
            }
            _ => None,
        };
        match storage {
            Some(storage) => self.make(Object::Storage(Rc::new(storage))),
            None => self.refuse("a persistent id that is no storage"),
        }
    }

    fn call(&mut self, function: Global, arguments: &[Value]) -> Step<()> {
        match self.result_of(function, arguments)? {
            Some(value) => self.push(value),
            None => self.refuse(format_args!(
                "`{}` with arguments that are not understood",
                function.name()
            )),
        }
    }

    /// What a call stands for; nothing if its arguments are not those of the function.
    fn result_of(&mut self, function: Global, arguments: &[Value]) -> Step<Option<Value>> {
        let object = match (function, arguments) {
            (Global::OrderedDict | Global::Counter | Global::DefaultDict, [])
            | (Global::DefaultDict, [Value::None | Value::Global(_)]) => Object::Dict(Vec::new()),
            (Global::Counter, [items]) => match self.object(items) {
                Some(Object::Dict(entries)) => {
                    let entries = entries.clone();
                    self.spend(2 * entries.len())?;
                    Object::Dict(entries)
                }
                _ => return Ok(None),
            },
            // What Python 2 writes.
            (Global::OrderedDict, [items]) => match self.pairs(items) {
                Some(pairs) => {
                    self.spend(2 * pairs.len())?;
                    Object::Dict(pairs)
                }
                None => return Ok(None),
            },
            (Global::Set | Global::FrozenSet, []) => Object::Set(Vec::new()),
            (Global::Set | Global::FrozenSet, [items]) => match self.object(items) {
                Some(Object::List(items) | Object::Tuple(items)) => {
                    let items = items.clone();
                    self.spend(items.len())?;
                    Object::Set(items)
                }
                _ => return Ok(None),
            },
            (Global::RebuildTensor, [storage, offset, shape, stride]) => {
                let place = (storage, offset, shape, stride);
                return self.tensor(place, None, false);
            }
            (
                Global::RebuildTensorV2,
                [
                    storage,
                    offset,
                    shape,
                    stride,
                    Value::Bool(_),
                    hooks,
                    metadata @ ..,
                ],
            ) if self.is_empty_dict(hooks) && metadata.len() <= 1 => {
                return match self.is_negated(metadata) {
                    Some(negated) => self.tensor((storage, offset, shape, stride), None, negated),
                    None => Ok(None),
                };
            }
            (
                Global::RebuildTensorV3,
                [
                    storage,
                    offset,
                    shape,
                    stride,
                    Value::Bool(_),
                    hooks,
                    Value::Global(Global::TorchDtype(dtype)),
                    metadata @ ..,
                ],
            ) if self.is_empty_dict(hooks) => {
                let Some(element) = Element::of_dtype(dtype) else {
                    return self.refuse(format_args!(
                        "a tensor of `torch.{dtype}`, which is not read"
                    ));
                };
                return match self.is_negated(metadata) {
                    Some(negated) => {
                        self.tensor((storage, offset, shape, stride), Some(element), negated)
                    }
                    None => Ok(None),
                };
            }
            // A parameter is the tensor that it holds.
            (Global::RebuildParameter, [tensor, Value::Bool(_), hooks])
            | (Global::RebuildParameterWithState, [tensor, Value::Bool(_), hooks, _])
                if matches!(self.object(tensor), Some(Object::Tensor(_)))
                    && self.is_empty_dict(hooks) =>
            {
                return Ok(Some(tensor.clone()));
            }
            // So is a tensor with attributes. Nothing is looked into more than once.
            (
                Global::RebuildFromType,
                [
                    Value::Global(function),
                    Value::Global(Global::TensorClass),
                    arguments,
                    _,
                ],
            ) if *function != Global::RebuildFromType => {
                let made = match self.arguments(arguments) {
                    Some(arguments) => self.result_of(*function, &arguments)?,
                    None => None,
                };
                let is_tensor = |made: &Value| matches!(self.object(made), Some(Object::Tensor(_)));
                return Ok(made.filter(is_tensor));
            }
            (Global::Size, [sizes]) if self.sizes(sizes).is_some() => {
                return Ok(Some(sizes.clone()));
            }
            (Global::Device, [Value::Text(_)] | [Value::Text(_), Value::Int(_)]) => {
                Object::Opaque("a device")
            }
            (Global::Layout, [Value::Text(_)]) => Object::Opaque("a layout"),
            (
                Global::Complex,
                [
                    Value::Float(_) | Value::Int(_),
                    Value::Float(_) | Value::Int(_),
                ],
            ) => Object::Opaque("a complex number"),
            (Global::Bytes | Global::ByteArray, []) => {
                return Ok(Some(Value::Bytes(Rc::new([]))));
            }
            (Global::ByteArray, [Value::Bytes(bytes)]) => {
                return Ok(Some(Value::Bytes(Rc::clone(bytes))));
            }
            (Global::Encode | Global::ByteArray, [Value::Text(text), Value::Text(codec)])
                if matches!(&**codec, "latin1" | "latin-1") =>
            {
                self.spend_bytes(text.len())?;
                let bytes: Option<Vec<u8>> = text
                    .chars()
                    .map(|c| u8::try_from(u32::from(c)).ok())
                    .collect();
                return match bytes {
                    Some(bytes) => Ok(Some(Value::Bytes(bytes.into()))),
                    None => self.refuse("a text that is not Latin-1"),
                };
            }
            // Old versions of NumPy wrote numbers for the truth values.
            (
                Global::Dtype,
                [
                    Value::Text(code),
                    Value::Bool(false) | Value::Int(0),
                    Value::Bool(true) | Value::Int(1),
                ],
            ) => {
                let Some(element) = Element::of_numpy(code) else {
                    let code = short(code);
                    return self.refuse(format_args!("NumPy type `{code}`, which is not read"));
                };
                Object::Dtype(element, element.bytes() == 1)
            }
            (Global::Reconstruct, [Value::Global(Global::NdArray), shape, code])
                if self.tuple_items(shape) == Some(&[Value::Int(0)])
                    && raw(code).is_some_and(|code| code == b"b") =>
            {
                Object::Array(None)
            }
            (Global::FromBuffer, [data, dtype, shape, Value::Text(order)])
                if matches!(&**order, "C" | "F") =>
            {
                return match self.array_of(data, dtype, shape, &**order == "F")? {
                    Some(array) => {
                        let array = Object::Array(Some(Box::new(array)));
                        Ok(Some(self.new_object(array)))
                    }
                    None => Ok(None),
                };
            }
            (Global::Scalar, [dtype, bytes]) => {
                let number = raw(bytes).and_then(|bytes| self.scalar(dtype, bytes));
                return Ok(number);
            }
            _ => return Ok(None),
        };
        Ok(Some(self.new_object(object)))
    }

    /// The object that a value refers to.
    fn object(&self, value: &Value) -> Option<&Object> {
        match value {
            Value::Object(i) => self.objects.get(*i),
            _ => None,
        }
    }

    /// The entries that a list of pairs holds.
    fn pairs(&self, value: &Value) -> Option<Vec<(Value, Value)>> {
        let (Object::List(items) | Object::Tuple(items)) = self.object(value)? else {
            return None;
        };
        let pair = |item: &Value| match self.object(item) {
            Some(Object::List(pair) | Object::Tuple(pair)) => match &pair[..] {
                [key, value] => Some((key.clone(), value.clone())),
                _ => None,
            },
            _ => None,
        };
        items.iter().map(pair).collect()
    }

    fn is_empty_dict(&self, value: &Value) -> bool {
        matches!(self.object(value), Some(Object::Dict(entries)) if entries.is_empty())
    }

    /// Whether the metadata of a tensor, `{'neg': True}` or nothing, turn its sign; nothing if they say anything else.
    fn is_negated(&self, metadata: &[Value]) -> Option<bool> {
        match metadata {
            [] | [Value::None] => Some(false),
            [metadata] => match self.object(metadata)? {
                Object::Dict(entries) if entries.len() <= 2 => {
                    let mut negated = false;
                    for entry in entries {
                        match entry {
                            (Value::Text(key), Value::Bool(yes)) if &**key == "neg" => {
                                negated = *yes;
                            }
                            (Value::Text(key), Value::Bool(false)) if &**key == "conj" => {}
                            _ => return None,
                        }
                    }
                    Some(negated)
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// A view of a storage that lies inside of it; `element` is the type for a storage that has none.
    fn tensor(
        &mut self,
        (storage, offset, shape, stride): (&Value, &Value, &Value, &Value),
        element: Option<Element>,
        negated: bool,
    ) -> Step<Option<Value>> {
        let storage = match self.object(storage) {
            Some(Object::Storage(storage)) if storage.typed == element.is_none() => {
                Rc::clone(storage)
            }
            _ => return Ok(None),
        };
        let numbers = (natural(offset), self.sizes(shape), self.sizes(stride));
        let (Some(offset), Some(shape), Some(stride)) = numbers else {
            return Ok(None);
        };
        let storage = match element {
            Some(element) if storage.len.is_multiple_of(element.bytes()) => Rc::new(Storage {
                element,
                typed: true,
                key: Rc::clone(&storage.key),
                len: storage.len / element.bytes(),
            }),
            Some(_) => return self.refuse("a storage of a broken number of elements"),
            None => storage,
        };
        if shape.len() != stride.len() {
            return Ok(None);
        }
        let ends = |count: usize| {
            let steps = shape.iter().zip(&stride);
            let last = steps.into_iter().try_fold(offset, |sum, (n, step)| {
                sum.checked_add(n.saturating_sub(1).checked_mul(*step)?)
            });
            count == 0 || last.is_some_and(|last| last < storage.len)
        };
        if !elements(&shape).is_some_and(ends) {
            return self.refuse(format_args!(
                "a tensor of sizes {shape:?} that reaches beyond its storage of {} elements",
                storage.len
            ));
        }
        let tensor = Tensor {
            storage,
            offset,
            shape,
            stride,
            negated,
        };
        Ok(Some(self.new_object(Object::Tensor(Box::new(tensor)))))
    }

    fn scalar(&self, dtype: &Value, bytes: &[u8]) -> Option<Value> {
        let Object::Dtype(element, true) = self.object(dtype)? else {
            return None;
        };
        Some(match element {
            Element::F64 => Value::Float(f64::from_le_bytes(bytes.try_into().ok()?)),
            Element::F32 => Value::Float(f32::from_le_bytes(bytes.try_into().ok()?).into()),
            Element::F16 => Value::Float(half::f16::from_le_bytes(bytes.try_into().ok()?).into()),
            Element::Bf16 => return None,
            Element::I64 => Value::Int(i64::from_le_bytes(bytes.try_into().ok()?)),
            Element::I32 => Value::Int(i32::from_le_bytes(bytes.try_into().ok()?).into()),
            Element::I16 => Value::Int(i16::from_le_bytes(bytes.try_into().ok()?).into()),
            Element::I8 => Value::Int(i8::from_le_bytes(bytes.try_into().ok()?).into()),
            Element::U64 => {
                let number = u64::from_le_bytes(bytes.try_into().ok()?);
                // What does not fit is kept as its bytes, as other long numbers are.
                i64::try_from(number).map_or_else(|_| Value::Bytes(bytes.into()), Value::Int)
            }
            Element::U32 => Value::Int(u32::from_le_bytes(bytes.try_into().ok()?).into()),
            Element::U16 => Value::Int(u16::from_le_bytes(bytes.try_into().ok()?).into()),
            Element::U8 => Value::Int(u8::from_le_bytes(bytes.try_into().ok()?).into()),
            Element::Bool => match bytes {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                _ => return None,
            },
        })
    }

    /// Sets the state of the object on top of the stack.
    fn build(&mut self, state: &Value) -> Step<()> {
        let i = self.top_object()?;
        let object = match (&self.objects[i], self.tuple_items(state)) {
            // PyTorch hangs `_metadata` (versions of layers) on a state dict; nothing here depends on it.
            (Object::Dict(_), None) if matches!(state, Value::Object(_)) => return Ok(()),
            (Object::Opaque(_), None) if matches!(self.object(state), Some(Object::Dict(_))) => {
                return Ok(());
            }
            (Object::Dtype(element, _), Some(state)) => {
                if let [_, Value::Text(order), ..] = state
                    && &**order == ">"
                {
                    return self.refuse("NumPy's byte order `>`, expected `<`");
                }
                is_dtype_state(state).then_some(Object::Dtype(*element, true))
            }
            (Object::Array(None), Some(state)) => {
                // `(1, shape, dtype, Fortran's order, data)`.
                let [Value::Int(1), shape, dtype, fortran, data] = state else {
                    return self.refuse("a state that NumPy does not write");
                };
                let fortran = match fortran {
                    Value::Bool(fortran) => *fortran,
                    Value::Int(0) => false,
                    Value::Int(1) => true,
                    _ => return self.refuse("a state that NumPy does not write"),
                };
                let (shape, dtype, data) = (shape.clone(), dtype.clone(), data.clone());
                self.array_of(&data, &dtype, &shape, fortran)?
                    .map(|array| Object::Array(Some(Box::new(array))))
            }
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

    /// An array of these bytes, if they are as many as it needs.
    fn array_of(
        &mut self,
        data: &Value,
        dtype: &Value,
        shape: &Value,
        fortran: bool,
    ) -> Step<Option<Array>> {
        let data: Rc<[u8]> = match data {
            Value::Bytes(data) => Rc::clone(data),
            // Python 2 does not tell them apart.
            Value::Text(text) => {
                self.spend_bytes(text.len())?;
                text.as_bytes().into()
            }
            _ => return Ok(None),
        };
        let (Some(Object::Dtype(element, true)), Some(shape)) =
            (self.object(dtype), self.sizes(shape))
        else {
            return Ok(None);
        };
        let element = *element;
        let bytes = elements(&shape).and_then(|count| count.checked_mul(element.bytes()));
        Ok((bytes == Some(data.len())).then_some(Array {
            element,
            shape,
            fortran,
            data,
        }))
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
