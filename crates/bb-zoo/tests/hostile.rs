//! Files made to harm whoever reads them: each ends in one error (or harmless values), within a second, in little memory.
//!
//! All of them are built here. Each is read by a process of its own, so that its memory can be measured.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bb_zoo::safetensors::{Safetensors, is_safetensors};
use bb_zoo::torch::{
    AttackResult, Checkpoint, Detail, Item, NamedTensor, TensorData, attack, nested, write,
};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Most memory that reading a hostile file may take, in KiB.
const MOST_MEMORY: u64 = 256 << 10;
/// Most time of the processor.
const MOST_TIME: Duration = Duration::from_secs(1);

/// What the process that reads is told, by the name of a variable.
const FILE: &str = "BB_HOSTILE_FILE";

/// Everything that reads a file of a stranger, one after the other. Gives what was said.
fn read(path: &Path) -> Result<(), String> {
    if is_safetensors(path).map_err(|error| error.to_string())? {
        let read = Safetensors::open(path).and_then(Safetensors::tensors);
        return read.map(|_| ()).map_err(|error| error.to_string());
    }
    let text = |error: bb_zoo::torch::TorchError| error.to_string();
    let checkpoint = Checkpoint::open(path).map_err(text)?;
    for (detail, most) in [(Detail::PAGE, 40 << 10), (Detail::FULL, 4 << 20)] {
        let scanned = bb_zoo::torch::scan(&checkpoint, detail);
        assert!(scanned.len() < most, "{} characters", scanned.len());
    }
    let _ = nested::at(&checkpoint, "model.model.model.a.a.a.0.0.0");
    for place in nested::places(&checkpoint) {
        let found = nested::at(&checkpoint, &place.key);
        assert!(place.key.is_empty() || found.is_some(), "{}", place.key);
    }
    let record = AttackResult::of(&checkpoint).map_err(text);
    let root = &checkpoint.pickle().root;
    let state = attack::state(&checkpoint, "", root).map_err(text);
    match (record, state) {
        (Err(record), Err(state)) => Err(format!("{record} | {state}")),
        _ => Ok(()),
    }
}

/// The body of the process that reads one file: what was said, the time, and the most memory.
#[test]
#[expect(clippy::print_stdout, reason = "the parent reads it")]
fn reader() {
    let Some(file) = std::env::var_os(FILE) else {
        return;
    };
    let begun = Instant::now();
    let said = match read(Path::new(&file)) {
        Ok(()) => "fine".to_owned(),
        Err(error) => error,
    };
    let wall = begun.elapsed();
    // Where the system does not say, the memory is not checked, and time is that of the clock.
    let usage = bb_core::events::usage();
    let time = usage.map_or(wall, |usage| usage.processor).as_millis();
    let peak = usage.map_or(0, |usage| usage.peak_kib);
    let said = said.escape_debug();
    println!("\n#{time}#{peak}#{said}#");
}

/// Reads a file in another process and checks time and memory; gives what was said.
fn harmless(path: &Path) -> String {
    let output = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "reader", "--nocapture"])
        .env(FILE, path)
        .output()
        .expect("this test starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}: {text}", path.display());
    let line = text.lines().find(|line| line.starts_with('#'));
    let mut parts = line.expect("what was said").splitn(4, '#').skip(1);
    let mut next = || parts.next().expect("a part");
    let time = Duration::from_millis(next().parse().expect("milliseconds"));
    let peak: u64 = next().parse().expect("KiB");
    let said = next().trim_end_matches('#').to_owned();
    assert!(time < MOST_TIME, "{time:?} for {}: {said}", path.display());
    assert!(
        peak < MOST_MEMORY,
        "{peak} KiB for {}: {said}",
        path.display()
    );
    said
}

/// An archive with these uncompressed files.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, content) in files {
        writer.start_file(*name, options).expect("a new name");
        writer.write_all(content).expect("memory");
    }
    writer.finish().expect("memory").into_inner()
}

/// An archive whose pickle this is.
fn program(opcodes: &[&[u8]]) -> Vec<u8> {
    let pickle = [b"\x80\x02".as_slice(), &opcodes.concat(), b"."].concat();
    archive(&[("x/data.pkl", &pickle)])
}

fn text(text: &str) -> Vec<u8> {
    let len = u32::try_from(text.len()).expect("short").to_le_bytes();
    [b"X".as_slice(), &len, text.as_bytes()].concat()
}

/// `n` keys, `0` to `n - 1`, each with the value that `value` makes, as the content of a dictionary.
fn entries(n: u32, value: &[u8]) -> Vec<u8> {
    let mut all = b"(".to_vec();
    for key in 0..n {
        all.push(b'J');
        all.extend_from_slice(&key.to_le_bytes());
        all.extend_from_slice(value);
    }
    all.push(b'u');
    all
}

/// A compressed file of `len` zeros: one literal, then copies of 258 bytes from one byte before.
fn deflated_zeros(len: usize) -> Vec<u8> {
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
    // Codes begin with their first bit, other numbers with their lowest.
    let mut put = |value: u32, size: u32, is_code: bool| {
        for i in 0..size {
            let bit = if is_code {
                value >> (size - 1 - i)
            } else {
                value >> i
            } & 1;
            bits |= bit << count;
            count += 1;
            if count == 8 {
                bytes.push(bits as u8);
                (bits, count) = (0, 0);
            }
        }
    };
    // The last block, with the fixed codes.
    put(1, 1, false);
    put(1, 2, false);
    put(0b0011_0000, 8, true);
    for _ in 0..(len - 1) / 258 {
        put(0b1100_0101, 8, true);
        put(0, 5, true);
    }
    put(0, 7, true);
    put(0, 7, false);
    bytes
}

/// An archive whose only file is said to be compressed, with these sizes.
fn compressed(name: &str, content: &[u8], size: u32) -> Vec<u8> {
    let mut bytes = archive(&[(name, content)]);
    let directory = bytes
        .windows(4)
        .position(|w| w == b"PK\x01\x02")
        .expect("a directory");
    for (method, length) in [(8, 22), (directory + 10, directory + 24)] {
        bytes[method] = 8;
        bytes[length..length + 4].copy_from_slice(&size.to_le_bytes());
    }
    bytes
}

/// An archive with a directory of `n` files, all at the same place.
fn crowd(n: u32) -> Vec<u8> {
    let one = archive(&[("x/data.pkl", b"\x80\x02}.")]);
    let directory = one
        .windows(4)
        .position(|w| w == b"PK\x01\x02")
        .expect("a directory");
    let end = one.len() - 22;
    let mut bytes = one[..directory].to_vec();
    let begin = bytes.len() as u64;
    for i in 0..n {
        let at = bytes.len();
        bytes.extend_from_slice(&one[directory..end]);
        // Names of one length, all different: `x/` and eight digits.
        let name = format!("x/{i:08}");
        bytes[at + 46..at + 46 + name.len()].copy_from_slice(name.as_bytes());
    }
    let size = bytes.len() as u64 - begin;
    let record = bytes.len() as u64;
    let words = [
        b"PK\x06\x06".as_slice(),
        &44u64.to_le_bytes(),
        &[45, 0, 45, 0],
        &[0; 8],
        &u64::from(n).to_le_bytes(),
        &u64::from(n).to_le_bytes(),
        &size.to_le_bytes(),
        &begin.to_le_bytes(),
        b"PK\x06\x07",
        &[0; 4],
        &record.to_le_bytes(),
        &1u32.to_le_bytes(),
        b"PK\x05\x06",
        &[0; 4],
        &[0xff; 12],
        &[0; 2],
    ];
    bytes.extend_from_slice(&words.concat());
    bytes
}

#[test]
fn bombs_of_every_kind_are_harmless() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // Each list holds the one before it ten times: 10^200 elements for whoever walks them.
    let mut doubling = b"]q\0".to_vec();
    for i in 0..200u8 {
        doubling.extend_from_slice(b"](");
        doubling.extend_from_slice(&[b'h', i].repeat(10));
        doubling.extend_from_slice(&[b'e', b'q', i + 1]);
    }
    // A dictionary of 200 entries that are all the same dictionary of 200 entries, and so on.
    let mut wide = b"}q\0".to_vec();
    for i in 0..6u8 {
        wide.extend_from_slice(b"}");
        wide.extend_from_slice(&entries(200, &[b'h', i]));
        wide.extend_from_slice(&[b'q', i + 1]);
    }
    // The same record for every image, with so many fields that finding one of them takes long.
    let fields = [b"}".as_slice(), &entries(150_000, b"N"), b"q\0"].concat();
    let records = [b"}".as_slice(), &entries(150_000, b"h\0")].concat();
    let vector = |code: &str, len: u32| {
        let size = text(&"\0".repeat(8 * len as usize));
        [
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85c_codecs\nencode\n"
                .as_slice(),
            &text("b"),
            &text("latin1"),
            b"\x86RtR(K\x01J",
            &len.to_le_bytes(),
            b"\x85cnumpy\ndtype\n",
            &text(code),
            b"\x89\x88\x87R(K\x03",
            &text("<"),
            b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89c_codecs\nencode\n",
            &size,
            &text("latin1"),
            b"\x86Rtb",
        ]
        .concat()
    };
    let many_fields = [
        fields.as_slice(),
        b"0}(",
        &text("num_classes"),
        b"K\x0a",
        &text("img_size"),
        b"K\x20K\x20K\x03\x87",
        &text("model_name"),
        &text("preactresnet18"),
        &text("model"),
        b"}",
        &text("clean_data"),
        &text("cifar10"),
        &text("bd_test"),
        b"}(",
        &text("poison_indicator"),
        &vector("f8", 150_000),
        &text("original_index_array"),
        &vector("i8", 0),
        &text("bd_data_container"),
        b"}(",
        &text("data_dict"),
        &records,
        b"uuu",
    ]
    .concat();
    let large = text(&"a".repeat(60 << 20));
    let encoded = [
        b"c_codecs\nencode\n".as_slice(),
        &text(&"\u{ff}".repeat(10 << 20)),
        &text("latin1"),
        b"\x86R",
    ]
    .concat();
    // A view of a storage of `len` floats.
    let view = |key: &str, len: u32, shape: &[u32], stride: &[u32]| {
        let number = |n: &u32| [b"J".as_slice(), &n.to_le_bytes()].concat();
        let numbers = |all: &[u32]| {
            let all: Vec<u8> = all.iter().flat_map(number).collect();
            [b"(".as_slice(), &all, b"t"].concat()
        };
        [
            b"ctorch._utils\n_rebuild_tensor_v2\n((".as_slice(),
            &text("storage"),
            b"ctorch\nFloatStorage\n",
            &text(key),
            &text("cpu"),
            &number(&len),
            b"tQK\0",
            &numbers(shape),
            &numbers(stride),
            b"\x89ccollections\nOrderedDict\n)RtR",
        ]
        .concat()
    };
    let with_storage = |opcodes: &[&[u8]], floats: usize| {
        let pickle = [b"\x80\x02".as_slice(), &opcodes.concat(), b"."].concat();
        archive(&[("x/data.pkl", &pickle), ("x/data/0", &vec![0; 4 * floats])])
    };
    let named = |count: u32, value: &[u8]| {
        let entry = |n| [text(&format!("w{n}")), value.to_vec()].concat();
        [
            b"}(".to_vec(),
            (0..count).flat_map(entry).collect(),
            b"u".to_vec(),
        ]
        .concat()
    };
    let copies = |function: &str, first: &[u8]| {
        let call = [format!("c{function}\nh\0").as_bytes(), b"\x85R0"].concat();
        let long = [first, b"q\0"].concat();
        program(&[b"(", &long, &call.repeat(1000), b"t"])
    };
    let long_list = [b"](".as_slice(), &b"N".repeat(300_000), b"e"].concat();
    let pairs = [b"](NN\x86q\x01".as_slice(), &b"h\x01".repeat(300_000), b"e"].concat();
    let deep = |open: &[u8], inner: &[u8], close: &[u8]| {
        program(&[&open.repeat(10_000), inner, &close.repeat(10_000)])
    };
    let safetensors = |header: &str, data: usize| {
        let len = (header.len() as u64).to_le_bytes();
        [len.as_slice(), header.as_bytes(), &vec![0; data]].concat()
    };
    let tiny = |n: usize, shape: &str| {
        let one =
            |i| format!("\"{i}\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[0,0]}}");
        format!("{{{}}}", (0..n).map(one).collect::<Vec<_>>().join(","))
    };
    let cases: Vec<(&str, &str, Vec<u8>)> = vec![
        ("sets in one another", "is a set, expected", {
            deep(b"\x8f(", b"N", b"\x90")
        }),
        ("frozen sets in one another", "is a set, expected", {
            deep(b"(", b"N", b"\x91")
        }),
        ("a set that holds itself", "is a set, expected", {
            program(&[b"\x8fq\0(h\0h\0\x90"])
        }),
        (
            "dictionaries 10,000 deep",
            "is a dictionary, expected a tensor",
            { deep(&[b"}", &text("model")[..]].concat(), b"}", b"s") },
        ),
        (
            "a dictionary that holds itself",
            "is a dictionary, expected a tensor",
            { program(&[b"}q\0", &text("model"), b"h\0s"]) },
        ),
        (
            "a long list as sets",
            "more values",
            copies("__builtin__\nset", &long_list),
        ),
        (
            "pairs again and again",
            "more values",
            copies("collections\nOrderedDict", &pairs),
        ),
        ("counts again and again", "more values", {
            copies(
                "collections\nCounter",
                &[b"}", &entries(200_000, b"N")[..]].concat(),
            )
        }),
        (
            "types of types",
            "with arguments that are not understood",
            {
                let one = b"ctorch._tensor\n_rebuild_from_type_v2\n";
                let class = b"ctorch\nTensor\n";
                program(&[one, b"(", one, class, b"))", b"tR"])
            },
        ),
        (
            "a buffer elsewhere",
            "a buffer that lies outside of the file",
            program(&[b"\x97"]),
        ),
        ("a bytearray of 2^63 bytes", "bytes expected", {
            program(&[b"\x96\0\0\0\0\0\0\0\x80"])
        }),
        (
            "a number of 4 GiB",
            "bytes expected",
            program(&[b"\x8b\xff\xff\xff\xff"]),
        ),
        (
            "an old text of 4 GiB",
            "bytes expected",
            program(&[b"T\xff\xff\xff\xff"]),
        ),
        (
            "a far place in the memo",
            "memo entry 4294967295 after 0",
            { program(&[b"Np4294967295\n"]) },
        ),
        (
            "a place that is none",
            "a line that is not a place in the memo",
            { program(&[b"Ng99999999999999999999\n"]) },
        ),
        ("a line of digits", "a name without end", {
            program(&[b"L", &b"9".repeat(1 << 20), b"\n"])
        }),
        ("a name of megabytes", "is not allowed", {
            program(&[&text(&"a".repeat(20 << 20)), &text("b"), b"\x93"])
        }),
        (
            "a view of terabytes",
            "have more elements than the file has room for",
            {
                let view = view("0", 1, &[1 << 20, 1 << 20], &[0, 0]);
                with_storage(&[&named(1, &view)], 1)
            },
        ),
        (
            "one view under many names",
            "have more elements than the file has room for",
            {
                let many = [b"](", &view("0", 1 << 20, &[1 << 19], &[1])[..], b"q\0e0"].concat();
                with_storage(&[&many, &named(20_000, b"h\0")], 1 << 20)
            },
        ),
        ("a pickle of pipes", "it is neither a zip archive", {
            [b"\x80\x04".as_slice(), &b"N".repeat(100)].concat()
        }),
        (
            "safetensors with a long header",
            "its header has 16777216 bytes",
            { safetensors(&format!("{{\"a\":{}", " ".repeat((16 << 20) - 5)), 0) },
        ),
        (
            "safetensors of many tensors",
            "tensors, expected at most 20000",
            { safetensors(&tiny(30_000, "[0]"), 0) },
        ),
        ("safetensors of many values", "more values than 400000", {
            safetensors(&tiny(100_000, "[0]"), 0)
        }),
        ("safetensors of many axes", "axes, expected at most 8", {
            safetensors(&tiny(1, &format!("[0{}]", ",1".repeat(100_000))), 0)
        }),
        ("safetensors with a name twice", "stands twice", {
            let one = tiny(1, "[0]");
            let inner = &one[1..one.len() - 1];
            safetensors(&format!("{{{inner},{inner}}}"), 0)
        }),
        (
            "safetensors of many bytes",
            "is no valid safetensors file",
            {
                safetensors(
                    "{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}",
                    0,
                )
            },
        ),
        (
            "safetensors in 8 bits",
            "is of type F8_E4M3, expected F64",
            {
                safetensors(
                    "{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[4],\"data_offsets\":[0,4]}}",
                    4,
                )
            },
        ),
        (
            "a list in a list",
            "is a tuple, expected a dictionary",
            program(&[b"(", &doubling, b"t"]),
        ),
        (
            // All of them are on the stack; the last one is what stays.
            "dictionaries in one another",
            "names of tensors as keys",
            program(&[b"(", &wide, b"t0h\x06"]),
        ),
        (
            "one record for all",
            "at most 16 entries",
            program(&[&many_fields]),
        ),
        (
            "three million values",
            "more values",
            program(&[&b"N".repeat(3_000_000)]),
        ),
        (
            "lists and nothing else",
            "more values",
            program(&[&b"]".repeat(3_000_000)]),
        ),
        (
            "lists of one",
            "more values",
            program(&[&b"]Na".repeat(1_000_000)]),
        ),
        (
            "dictionaries of one",
            "more values",
            program(&[&b"}NNs".repeat(1_000_000)]),
        ),
        (
            "tuples in one another",
            "is a tuple",
            program(&[b"N", &b"\x85".repeat(600_000)]),
        ),
        ("marks", "more values", program(&[&b"(".repeat(3_000_000)])),
        (
            "a memo with a gap",
            "memo entry 4294967295 after 0",
            program(&[b"Nr\xff\xff\xff\xff"]),
        ),
        (
            "a text of 4 GiB",
            "bytes expected",
            program(&[b"X\xff\xff\xff\xffabc"]),
        ),
        (
            "a text of 2^64 bytes",
            "bytes expected",
            program(&[b"\x8d", &[0xff; 8]]),
        ),
        (
            "bytes of 2^63 bytes",
            "bytes expected",
            program(&[b"\x8e\0\0\0\0\0\0\0\x80"]),
        ),
        ("a long text", "is a text", program(&[&large])),
        (
            "a long text again and again",
            "is a list, expected",
            program(&[b"](", &large, b"q\0", &b"h\0".repeat(100_000), b"e"]),
        ),
        ("bytes as text", "is a byte string", program(&[&encoded])),
        (
            "a long name",
            "a name without end",
            program(&[b"c", &b"a".repeat(1 << 20), b"\n\n"]),
        ),
        (
            "a million entries",
            "more values",
            program(&[b"}", &entries(1_000_000, b"N")]),
        ),
        (
            "as many entries as fit",
            "a dictionary of 450000, expected at most 20000 tensors",
            program(&[b"}", &entries(450_000, b"N")]),
        ),
        ("short tuples", "arguments that are not understood", {
            let rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n";
            program(&[rebuild, b"K\0\x85R"])
        }),
        ("a short persistent id", "a persistent id", {
            program(&[&text("storage"), b"\x85Q"])
        }),
        ("an empty dictionary", "fine", program(&[b"}"])),
        (
            "a tensor that is a text",
            "is a text, expected a tensor",
            program(&[b"}", &text("w"), &text("v"), b"s"]),
        ),
        ("a deflate bomb", "is compressed or encrypted", {
            compressed("x/data.pkl", &deflated_zeros(64 << 20), 64 << 20)
        }),
        (
            "a file of a million files",
            "1000000 files in the archive",
            crowd(1_000_000),
        ),
        ("two pickles", "two `data.pkl`", {
            archive(&[("x/data.pkl", b"\x80\x02}."), ("y/data.pkl", b"\x80\x02}.")])
        }),
        ("a pickle before an archive", "neither a zip archive", {
            [b"\x80\x02}.".as_slice(), &program(&[b"}"])].concat()
        }),
        ("an old file before an archive", "magic number", {
            let old = b"\x80\x02\x8a\x0a\0\0\0\0\0\0\0\0\0\0.";
            [old.as_slice(), &program(&[b"}"])].concat()
        }),
        ("an archive before a pickle", "something follows it", {
            [program(&[b"}"]).as_slice(), b"\x80\x02}."].concat()
        }),
        ("names that lead elsewhere", "fine", {
            archive(&[("../../x/data.pkl", b"\x80\x02}."), ("/etc/passwd", b"x")])
        }),
        ("nothing but an end", "neither a zip archive", {
            [b"PK\x05\x06".as_slice(), &[0; 18]].concat()
        }),
    ];
    let mut wrong = Vec::new();
    for (name, expected, bytes) in cases {
        let path = folder.path().join(name);
        fs_err::write(&path, bytes).expect("a file of some megabytes");
        let said = harmless(&path);
        if !said.contains(expected) {
            wrong.push(format!("{name}: {said}"));
        }
        fs_err::remove_file(&path).expect("it is ours");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A small record of an attack, written by the writer of this crate.
fn record(change: impl FnOnce(&mut Labels)) -> Vec<u8> {
    let mut labels = Labels {
        attacked: 0,
        original: 3,
        index: 2,
        path: "./record/a/bd_test_dataset/3/2.png".to_owned(),
        kept: vec![2],
        indicator: vec![0.0, 0.0, 1.0, 0.0],
        weights: vec![1.0, 2.0, 3.0, 4.0],
        classes: 10,
    };
    change(&mut labels);
    let record = Item::dict([
        ("path", Item::text(labels.path)),
        (
            "other_info",
            Item::List(vec![Item::Int(labels.attacked), Item::Int(labels.original)]),
        ),
    ]);
    let records = Item::Dict(vec![(Item::Int(labels.index), record)]);
    let state = vec![NamedTensor {
        name: "w".to_owned(),
        shape: vec![2, 2],
        data: TensorData::Float(labels.weights),
    }];
    let item = Item::dict([
        ("model_name", Item::text("preactresnet18")),
        ("num_classes", Item::Int(labels.classes)),
        ("model", Item::State(state)),
        ("img_size", Item::Tuple([32, 32, 3].map(Item::Int).into())),
        ("clean_data", Item::text("cifar10")),
        (
            "bd_test",
            Item::dict([
                ("bd_data_container", Item::dict([("data_dict", records)])),
                ("original_index_array", Item::Integers(labels.kept)),
                ("poison_indicator", Item::Floats(labels.indicator)),
            ]),
        ),
    ]);
    let mut out = std::io::Cursor::new(Vec::new());
    write::archive(&mut out, "attack_result", &item).expect("memory");
    out.into_inner()
}

/// Makes a good record a bad one.
type Change = fn(&mut Labels);

/// What is changed in a record.
struct Labels {
    attacked: i64,
    original: i64,
    index: i64,
    path: String,
    kept: Vec<i64>,
    indicator: Vec<f64>,
    weights: Vec<f32>,
    classes: i64,
}

fn put(folder: &Path, bytes: &[u8]) -> PathBuf {
    let path = folder.join("attack_result.pt");
    fs_err::write(&path, bytes).expect("a small file");
    path
}

#[test]
fn numbers_out_of_range_and_paths_that_lead_elsewhere_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let read = |change: fn(&mut Labels)| {
        let path = put(folder.path(), &record(change));
        AttackResult::read(&path).map_err(|error| error.to_string())
    };
    read(|_| ()).expect("a good record");
    let cases: [(&str, Change); 16] = [
        ("[attacked label, true label]", |l| l.attacked = 10),
        ("[attacked label, true label]", |l| l.attacked = -1),
        ("[attacked label, true label]", |l| l.original = 10),
        ("[attacked label, true label]", |l| l.original = i64::MAX),
        ("a path that ends in", |l| l.original = 4),
        ("a path that ends in", |l| {
            l.path = "./bd_test_dataset/3/3.png".into();
        }),
        ("a path that ends in", |l| l.path = "3/2.png".into()),
        ("a path that ends in", |l| l.path = "/../3/2.png".into()),
        ("a path that ends in", |l| l.path = "a/..\\3\\2.png".into()),
        ("a path that ends in", |l| {
            l.path = format!("{}/3/2.png", "a".repeat(200));
        }),
        ("indices of images as keys", |l| l.index = 4),
        ("indices of images as keys", |l| l.index = -1),
        ("ascending indices", |l| l.kept = vec![4]),
        ("ascending indices", |l| l.kept = vec![2, 2]),
        ("1 for the images of `bd_data_container`", |l| {
            l.indicator[0] = 1.0;
        }),
        ("a number of classes", |l| l.classes = i64::MIN),
    ];
    for (expected, change) in cases {
        let error = read(change).expect_err(expected);
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn a_record_that_is_cut_or_changed_is_refused_or_says_the_same() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let good = record(|_| ());
    let read = |bytes: &[u8]| AttackResult::read(&put(folder.path(), bytes));
    let expected = read(&good).expect("a good record");
    for cut in (0..good.len()).step_by(37) {
        assert!(read(&good[..cut]).is_err(), "cut at {cut}");
    }
    for place in 0..good.len() {
        // Another bit at each place, all of them in turn.
        let mut bytes = good.clone();
        bytes[place] ^= 1 << (place % 8);
        // A date or a padding byte may change without harm; what is read may not.
        if let Ok(found) = read(&bytes) {
            assert_eq!(found.state, expected.state, "byte {place}");
            assert_eq!(found.test, expected.test, "byte {place}");
        }
    }
    let error = {
        let mut bytes = good.clone();
        let place = good
            .windows(4)
            .position(|w| w == 3f32.to_le_bytes())
            .expect("the third weight");
        bytes[place] ^= 1;
        read(&bytes).expect_err("a wrong checksum").to_string()
    };
    assert!(error.to_lowercase().contains("checksum"), "{error}");
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let error = Checkpoint::open(folder.path())
        .expect_err("a folder")
        .to_string();
    assert!(
        error.contains("is a folder, expected a regular file"),
        "{error}"
    );
    let pipe = folder.path().join("pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0)
        .expect("a pipe");
    let error = Checkpoint::open(&pipe).expect_err("a pipe").to_string();
    assert!(
        error.contains("is a named pipe, expected a regular file"),
        "{error}"
    );
    let error = bb_zoo::index::Index::load(&pipe)
        .expect_err("a pipe")
        .to_string();
    assert!(
        error.contains("is a named pipe, expected a regular file"),
        "{error}"
    );
    assert!(Checkpoint::open(&folder.path().join("absent")).is_err());
}
