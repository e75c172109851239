//! Pickles of opcodes that mostly fit together.
//!
//! The program keeps the kinds of the values on its stack in mind, so that most opcodes find what they need and the
//! reader gets far; now and then one is written that does not fit.

use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use rand_chacha::ChaCha8Rng;

/// What stands on the stack, as far as the generator knows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Mark,
    Text,
    Int,
    List,
    Dict,
    Tuple,
    Other,
}

const WORDS: &[&str] = &[
    "model",
    "model_name",
    "num_classes",
    "img_size",
    "clean_data",
    "bd_train",
    "bd_test",
    "bd_data_container",
    "data_dict",
    "original_index_array",
    "poison_indicator",
    "other_info",
    "path",
    "storage",
    "0",
    "1",
    "cpu",
    "latin1",
    "b",
    "i8",
    "f8",
    "<",
    "preactresnet18",
    "cifar10",
    "conv1.weight",
    "module.linear.bias",
    "./record/a/bd_test_dataset/3/2.png",
    "\u{0}\u{ff}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}",
];

const GLOBALS: &[(&str, &str)] = &[
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("torch._utils", "_rebuild_parameter_with_state"),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("torch", "Tensor"),
    ("torch", "device"),
    ("torch", "uint16"),
    ("torch.storage", "UntypedStorage"),
    ("collections", "Counter"),
    ("collections", "defaultdict"),
    ("__builtin__", "set"),
    ("__builtin__", "bytearray"),
    ("__builtin__", "complex"),
    ("argparse", "Namespace"),
    ("numpy.core.numeric", "_frombuffer"),
    ("torch", "Size"),
    ("torch", "FloatStorage"),
    ("torch", "LongStorage"),
    ("torch", "BoolStorage"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    ("os", "system"),
];

/// Names and sizes in bytes of the storages that programs refer to.
pub const STORAGES: &[(u8, u8)] = &[(b'0', 8), (b'1', 16), (b'2', 64)];

struct Program<'a> {
    bytes: Vec<u8>,
    stack: Vec<Kind>,
    memo: u8,
    random: &'a mut ChaCha8Rng,
}

/// One pickle.
pub fn pickle(random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut program = Program {
        bytes: vec![0x80, 2],
        stack: Vec::new(),
        memo: 0,
        random,
    };
    // Often a state dictionary or the like, so that what stands behind it is not in vain.
    if program.random.random_bool(0.5) {
        program.op(b"}", Kind::Dict);
        for _ in 0..program.random.random_range(0..8) {
            program.entry();
        }
    }
    let most = *[1, 4, 120].choose(program.random).expect("some numbers");
    for _ in 0..program.random.random_range(0..=most) {
        program.step();
    }
    if program.stack.is_empty() {
        program.text();
    }
    program.end()
}

impl Program<'_> {
    fn op(&mut self, bytes: &[u8], gives: Kind) {
        self.bytes.extend_from_slice(bytes);
        self.stack.push(gives);
    }

    fn text(&mut self) {
        let word = WORDS.choose(self.random).expect("some words").as_bytes();
        // Short, so it fits one byte.
        self.bytes
            .extend_from_slice(&[b'X', word.len() as u8, 0, 0, 0]);
        self.op(word, Kind::Text);
    }

    fn int(&mut self) {
        if self.random.random_bool(0.9) {
            let n = self.random.random_range(0..12);
            self.op(&[b'K', n], Kind::Int);
        } else {
            let n: i32 = *[-1, i32::MAX, i32::MIN, 1 << 20]
                .choose(self.random)
                .expect("some");
            self.bytes.push(b'J');
            self.op(&n.to_le_bytes(), Kind::Int);
        }
    }

    fn global(&mut self) {
        // The last one is refused, so it comes seldom.
        let last = GLOBALS.len() - usize::from(self.random.random_bool(0.99));
        let (module, name) = GLOBALS[self.random.random_range(0..last)];
        self.op(format!("c{module}\n{name}\n").as_bytes(), Kind::Other);
    }

    /// Takes everything down to the last mark.
    fn close(&mut self) {
        while self.stack.pop().is_some_and(|kind| kind != Kind::Mark) {}
    }

    fn marked(&self) -> bool {
        self.stack.contains(&Kind::Mark)
    }

    /// Kinds above the last mark, the top last.
    fn top(&self) -> &[Kind] {
        let mark = self.stack.iter().rposition(|kind| *kind == Kind::Mark);
        &self.stack[mark.map_or(0, |mark| mark + 1)..]
    }

    /// A tuple of sizes.
    fn sizes(&mut self) {
        self.op(b"(", Kind::Mark);
        for _ in 0..self.random.random_range(0..4) {
            self.int();
        }
        self.bytes.push(b't');
        self.close();
        self.stack.push(Kind::Tuple);
    }

    /// A tensor as PyTorch writes it, of one of the storages that [`STORAGES`] has; sometimes its numbers are others.
    fn tensor(&mut self) {
        let (key, bytes) = *STORAGES.choose(self.random).expect("some storages");
        let classes = [
            ("FloatStorage", 4),
            ("LongStorage", 8),
            ("HalfStorage", 2),
            ("BoolStorage", 1),
        ];
        let (class, size) = *classes.choose(self.random).expect("some classes");
        let len = bytes / size;
        let right = self.random.random_bool(0.8);
        self.bytes
            .extend_from_slice(b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage");
        self.bytes
            .extend_from_slice(format!("ctorch\n{class}\n").as_bytes());
        self.bytes
            .extend_from_slice(&[b'X', 1, 0, 0, 0, key, b'X', 3, 0, 0, 0]);
        self.bytes.extend_from_slice(b"cpu");
        let depth = self.stack.len();
        if right {
            let rest = [
                b'K', len, b't', b'Q', b'K', 0, b'K', len, 0x85, b'K', 1, 0x85,
            ];
            self.bytes.extend_from_slice(&rest);
        } else {
            self.int();
            self.bytes.extend_from_slice(b"tQ");
            self.int();
            self.sizes();
            self.sizes();
        }
        self.bytes
            .extend_from_slice(b"\x89ccollections\nOrderedDict\n)RtR");
        self.stack.truncate(depth);
        self.stack.push(Kind::Other);
    }

    /// A NumPy vector, but for its length.
    fn array(&mut self) {
        let code: &[u8] = if self.random.random() { b"i8" } else { b"f8" };
        let (said, has) = (
            self.random.random_range(0..4u8),
            self.random.random_range(0..4u8),
        );
        let mut data = String::new();
        for _ in 0..8 * has {
            data.push(char::from(self.random.random::<u8>()));
        }
        self.bytes.extend_from_slice(
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85c_codecs\nencode\nX\x01\0\0\0bX\x06\0\0\0latin1\x86RtR(K\x01K",
        );
        self.bytes.push(said);
        self.bytes
            .extend_from_slice(b"\x85cnumpy\ndtype\nX\x02\0\0\0");
        self.bytes.extend_from_slice(code);
        self.bytes.extend_from_slice(
            b"\x89\x88\x87R(K\x03X\x01\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89c_codecs\nencode\nX",
        );
        let len = u32::try_from(data.len()).expect("short").to_le_bytes();
        self.bytes.extend_from_slice(&len);
        self.bytes.extend_from_slice(data.as_bytes());
        self.op(b"X\x06\0\0\0latin1\x86Rtb", Kind::Other);
    }

    fn step(&mut self) {
        let top = self.top();
        let (last, before) = (top.last().copied(), top.iter().rev().nth(1).copied());
        match self.random.random_range(0..32) {
            0 | 1 => self.text(),
            2 | 3 => self.int(),
            4 => self.op(b"N", Kind::Other),
            5 => self.op(&[0x88], Kind::Other),
            6 => self.op(b"G\x7f\xf8\0\0\0\0\0\0", Kind::Other),
            7 => self.op(b"]", Kind::List),
            8 | 9 => self.op(b"}", Kind::Dict),
            10 => self.op(b")", Kind::Tuple),
            11 => self.op(b"(", Kind::Mark),
            12 => self.global(),
            13 | 14 => self.tensor(),
            15 => self.array(),
            16 => self.sizes(),
            17 if self.marked() => {
                self.bytes.push(b't');
                self.close();
                self.stack.push(Kind::Tuple);
            }
            18 if before == Some(Kind::List) => {
                self.bytes.push(b'a');
                self.stack.pop();
            }
            19 | 20 if last == Some(Kind::Dict) => self.entry(),
            21 if last.is_some() => {
                self.bytes.extend_from_slice(&[b'q', self.memo]);
                self.memo = self.memo.saturating_add(1);
            }
            22 if self.memo > 0 => {
                let place = self.random.random_range(0..self.memo);
                self.op(&[b'h', place], Kind::Other);
            }
            23 if last == Some(Kind::Tuple) && before == Some(Kind::Other) => {
                self.bytes
                    .push(if self.random.random() { b'R' } else { b'b' });
                self.stack.pop();
            }
            26 => self.op(b"\x8f", Kind::Other),
            27 if self.marked() => {
                // All above the mark into the set below it, or a set of its own.
                let into = self.random.random();
                self.bytes.push(if into { 0x90 } else { 0x91 });
                self.close();
                self.stack.extend((!into).then_some(Kind::Other));
            }
            28 if self.marked() => {
                self.bytes
                    .push(if self.random.random() { b'l' } else { b'd' });
                self.close();
                self.stack.push(Kind::Other);
            }
            29 if last == Some(Kind::Tuple) && before == Some(Kind::Other) => {
                self.bytes.push(0x81);
                self.stack.pop();
            }
            30 => self.op(b"\x96\x02\0\0\0\0\0\0\0ab", Kind::Other),
            31 => self.op(b"I-7\n", Kind::Int),
            24 => self.op(b"Q", Kind::Other),
            25 => {
                let opcode = self.random.random();
                self.bytes.push(opcode);
            }
            _ => {}
        }
    }

    /// A pair for the dictionary on top of the stack; its key is mostly a text.
    fn entry(&mut self) {
        if self.random.random_bool(0.9) {
            self.text();
        } else {
            self.int();
        }
        match self.random.random_range(0..8) {
            0 => self.text(),
            1 => self.array(),
            2 => self.int(),
            _ => self.tensor(),
        }
        self.bytes.push(b's');
        self.stack.truncate(self.stack.len() - 2);
    }

    /// Makes one value of all that is left.
    fn end(mut self) -> Vec<u8> {
        while self.marked() {
            self.bytes.push(b't');
            self.close();
            self.stack.push(Kind::Tuple);
        }
        // What lies below the last value is dropped, if the last one is kept in the memo meanwhile.
        while self.stack.len() > 1 {
            self.bytes.push(b'0');
            self.stack.pop();
        }
        self.bytes.push(b'.');
        self.bytes
    }
}
