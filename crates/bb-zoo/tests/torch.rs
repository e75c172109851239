//! Checkpoints: those that PyTorch wrote, and those that somebody else made up.

use bb_core::cli::{Coded, exit};
use bb_zoo::torch::pickle::{Object, Value};
use bb_zoo::torch::{AttackResult, Checkpoint, TensorData};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use zip::CompressionMethod;

mod program;
use program::{Program, archive, put, tensors};

/// `{"w": tensor}` and its four floats.
fn small() -> Vec<u8> {
    let pickle = Program::new()
        .op(b"}")
        .text("w")
        .tensor("0", 4, 0, &[2, 2], &[1, 2])
        .op(b"s")
        .end();
    let floats: Vec<u8> = [1f32, 2.0, 3.0, 4.0]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    archive(
        &[
            ("x/data.pkl", &pickle),
            ("x/byteorder", b"little"),
            ("x/data/0", &floats),
        ],
        CompressionMethod::Stored,
    )
}

#[test]
fn a_transposed_tensor_is_put_in_order() {
    let (_folder, path) = put(&small());
    let found = tensors(&path).expect("a good file");
    assert_eq!(found[0].name, "w");
    assert_eq!(found[0].shape, [2, 2]);
    assert_eq!(found[0].data, TensorData::Float(vec![1.0, 3.0, 2.0, 4.0]));
}

#[test]
fn what_the_opcodes_make() {
    let numbers = Program::new()
        .op(b"(")
        .op(b"K\x07M\x00\x01\x8a\x02\x00\xffG\x3f\xf8\0\0\0\0\0\0\x88N")
        .op(b"t")
        .read()
        .expect("allowed opcodes");
    assert_eq!(
        numbers.sequence(&numbers.root),
        Some(
            &[
                Value::Int(7),
                Value::Int(256),
                Value::Int(-256),
                Value::Float(1.5),
                Value::Bool(true),
                Value::None
            ][..]
        )
    );
    // A list that is remembered before it is filled is the same list afterwards.
    let shared = Program::new()
        .op(b"(]q\0K\x01ah\0t")
        .read()
        .expect("allowed opcodes");
    let items = shared.sequence(&shared.root).expect("a tuple");
    assert_eq!(items[0], items[1]);
    assert_eq!(
        shared.object(&items[1]),
        Some(&Object::List(vec![Value::Int(1)]))
    );
}

#[test]
fn a_call_is_refused_by_name_and_place_and_not_made() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let canary = folder.path().join("canary");
    let pickle = Program::new()
        .global("os", "system")
        .op(b"(")
        .text(&format!("touch {}", canary.display()))
        .op(b"tR")
        .end();
    let bytes = archive(&[("a/data.pkl", &pickle)], CompressionMethod::Stored);
    let (_folder, path) = put(&bytes);
    let error = Checkpoint::open(&path).expect_err("a call of the system");
    assert_eq!(error.exit_code(), exit::INPUT);
    let text = std::error::Error::source(&error).map(ToString::to_string);
    assert_eq!(
        text.as_deref(),
        Some("`os.system` is not allowed at byte 2 of the pickle")
    );
    assert!(!canary.exists());
}

#[test]
fn each_forgery_is_refused_with_its_reason() {
    let dtype = |program: Program, code: &str, order: &str| {
        program
            .global("numpy", "dtype")
            .op(b"(")
            .text(code)
            .op(b"\x89\x88tR(K\x03")
            .text(order)
            .op(b"NNN")
            .int(-1)
            .int(-1)
            .int(0)
            .op(b"tb")
    };
    for (what, program) in [
        ("opcode 0x69 is not allowed", Program::new().op(b"i")),
        ("values left over", Program::new().op(b"NN")),
        ("pickle protocol 6", Program(vec![0x80, 6])),
        ("a value expected on an empty stack", Program::new()),
        (
            "a value expected on an empty stack",
            Program::new().op(b"N(0"),
        ),
        ("a mark expected", Program::new().op(b"]e")),
        (
            "memo entry 3 that was never set",
            Program::new().op(b"h\x03"),
        ),
        ("memo entry 9 after 0", Program::new().op(b"Nq\x09")),
        ("a list expected", Program::new().op(b"}Na")),
        ("a dictionary expected", Program::new().op(b"]NNs")),
        ("a key without value", Program::new().op(b"}(Nu")),
        (
            "a function and its arguments expected",
            Program::new().op(b"N)R"),
        ),
        (
            "`_codecs.encode` with arguments",
            Program::new()
                .global("_codecs", "encode")
                .op(b"(")
                .text("a")
                .op(b"tR"),
        ),
        (
            "not Latin-1",
            Program::new()
                .global("_codecs", "encode")
                .op(b"(")
                .text("\u{100}")
                .text("latin1")
                .op(b"tR"),
        ),
        (
            "a tensor of sizes [2, 2] that reaches beyond its storage of 4 elements",
            Program::new().tensor("0", 4, 1, &[2, 2], &[2, 1]),
        ),
        (
            "reaches beyond its storage of 4 elements",
            Program::new().tensor("0", 4, 0, &[i32::MAX, i32::MAX, i32::MAX], &[0, 0, 1]),
        ),
        (
            "`torch._utils._rebuild_tensor_v2` with arguments",
            Program::new().tensor("0", 4, 0, &[-1], &[1]),
        ),
        ("NumPy type `O8`", dtype(Program::new(), "O8", "<")),
        (
            "NumPy's byte order `>`, expected `<`",
            dtype(Program::new(), "f8", ">"),
        ),
        ("a persistent id", Program::new().op(b"NQ")),
    ] {
        let error = program.read().expect_err(what);
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn bombs_are_refused_at_once_and_depth_is_harmless() {
    let begun = Instant::now();
    // Each list holds the one before it twice: 2^200 elements for whoever walks it.
    let mut doubling = Program::new().op(b"]q\0");
    for i in 0..200u8 {
        doubling = doubling
            .op(b"](h")
            .op(&[i])
            .op(b"h")
            .op(&[i])
            .op(b"eq")
            .op(&[i + 1]);
    }
    let doubling = doubling.op(b"\x85".repeat(201).as_slice());
    assert!(doubling.read().is_err(), "values are left on the stack");
    let deep = Program::new().op(b"N").op(&b"\x85".repeat(600_000));
    deep.read().expect("600,000 tuples in one another");
    let wide = Program::new().op(&b"N".repeat(3_000_000));
    let error = wide.read().expect_err("too many values");
    assert!(error.contains("more values"), "{error}");
    let huge = Program::new().op(b"X\xff\xff\xff\xffabc");
    assert!(huge.read().expect_err("cut off").contains("bytes expected"));
    let huge = Program::new().op(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff");
    assert!(huge.read().expect_err("cut off").contains("bytes expected"));
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn each_bad_archive_is_refused_with_its_reason() {
    let good = small();
    let pickle = Program::new().op(b"}").end();
    let stored = |files: &[(&str, &[u8])]| archive(files, CompressionMethod::Stored);
    let mut flipped = good.clone();
    let place = good
        .windows(4)
        .position(|w| w == 3f32.to_le_bytes())
        .expect("the third float");
    flipped[place] ^= 1;
    let short = Program::new()
        .op(b"}")
        .text("w")
        .tensor("0", 4, 0, &[4], &[1])
        .op(b"s")
        .end();
    for (reason, bytes) in [
        ("it is empty", Vec::new()),
        (
            "Git LFS pointer",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n".to_vec(),
        ),
        ("web page", b"<!DOCTYPE html><html></html>".to_vec()),
        ("neither a zip archive", b"hello".to_vec()),
        ("something follows it", [good.as_slice(), b"MZ"].concat()),
        (
            "neither a zip archive",
            [b"GIF89a".as_slice(), &good].concat(),
        ),
        ("no `data.pkl`", stored(&[("x/version", b"3")])),
        (
            "two `data.pkl`",
            stored(&[("x/data.pkl", &pickle), ("y/data.pkl", &pickle)]),
        ),
        (
            "byte order",
            stored(&[("x/data.pkl", &pickle), ("x/byteorder", b"big")]),
        ),
        (
            "follows its pickle",
            stored(&[("x/data.pkl", &[&*pickle, b"N"].concat())]),
        ),
        (
            "bytes, expected 16",
            stored(&[("x/data.pkl", &short), ("x/data/0", &[0; 8])]),
        ),
        ("`x/data/0`", stored(&[("x/data.pkl", &short)])),
        ("hecksum", flipped),
    ] {
        let (_folder, path) = put(&bytes);
        let error = tensors(&path).expect_err(reason);
        assert!(error.to_string().contains(reason), "{reason}: {error}");
        assert_eq!(error.exit_code(), exit::INPUT);
        assert!(error.to_string().contains("file.pt"), "{error}");
    }
}

/// Where marks of two letters and two bytes are.
fn marks(bytes: &[u8], mark: [u8; 4]) -> Vec<usize> {
    let found = bytes.windows(4).enumerate().filter(|(_, w)| *w == mark);
    found.map(|(at, _)| at).collect()
}

const HEAD: [u8; 4] = *b"PK\x03\x04";
const ENTRY: [u8; 4] = *b"PK\x01\x02";
const END: [u8; 4] = *b"PK\x05\x06";

/// Puts bytes into an archive at `at`, and moves the places that are behind them in its directory.
fn with_bytes(archive: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let moved = |out: &mut Vec<u8>, place: usize| {
        let old = u32::from_le_bytes(out[place..place + 4].try_into().expect("four"));
        let new = old
            + if old as usize >= at {
                bytes.len() as u32
            } else {
                0
            };
        out[place..place + 4].copy_from_slice(&new.to_le_bytes());
    };
    let mut out = archive.to_vec();
    for entry in marks(archive, ENTRY) {
        moved(&mut out, entry + 42);
    }
    moved(&mut out, marks(archive, END)[0] + 16);
    out.splice(at..at, bytes.iter().copied());
    out
}

#[test]
fn nothing_hides_in_an_archive_and_its_heads_say_what_its_directory_says() {
    let pickle = Program::new().op(b"}").end();
    let files: [(&str, &[u8]); 3] = [("x/data.pkl", &pickle), ("x/version", b"3"), ("x/a", b"12")];
    let good = archive(&files, CompressionMethod::Stored);
    let heads = marks(&good, HEAD);
    let entries = marks(&good, ENTRY);
    let end = marks(&good, END)[0];
    assert_eq!((heads.len(), entries.len(), heads[0]), (3, 3, 0));
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] ^= byte;
        bytes
    };
    let mut shared = good.clone();
    shared.copy_within(entries[1] + 42..entries[1] + 46, entries[2] + 42);
    let before = "something stands before the archive";
    let between = "something stands between the files of the archive";
    let other = "has another head than the directory of the archive says";
    let secret = "is compressed or encrypted, which `torch.save` never does";
    for (reason, bytes) in [
        (before, with_bytes(&good, 0, b"PK\x03\x04 another program")),
        ("is not where its end says", [&HEAD[..], &good].concat()),
        (between, with_bytes(&good, heads[1], b"hidden")),
        (between, with_bytes(&good, entries[0], b"hidden")),
        (
            "is not where its end says",
            with_bytes(&good, end, b"hidden"),
        ),
        (
            "is cut off, or something follows it",
            [&good[..], b"hidden"].concat(),
        ),
        (between, shared),
        (other, changed(heads[1] + 6, 8)),      // flags
        (other, changed(heads[1] + 8, 8)),      // method
        (other, changed(heads[1] + 14, 1)),     // checksum
        (other, changed(heads[1] + 18, 1)),     // bytes packed
        (other, changed(heads[1] + 22, 1)),     // bytes
        (other, changed(heads[1] + 30, 1)),     // name
        (secret, changed(entries[1] + 8, 1)),   // encrypted
        (secret, changed(entries[1] + 8, 32)),  // a patch
        (secret, changed(entries[1] + 10, 99)), // a method
        (
            "directory of the archive is damaged",
            changed(entries[1] + 20, 1),
        ),
    ] {
        let (_folder, path) = put(&bytes);
        let error = Checkpoint::open(&path).expect_err(reason).to_string();
        assert!(error.contains(reason), "{reason}: {error}");
    }
    let (_folder, path) = put(&good);
    Checkpoint::open(&path).expect("as it was");
}

#[test]
fn the_pickles_of_the_older_format_share_no_more_than_one_needs() {
    // A list of truth values in place of the facts of the system, or of the names of storages.
    let many = |n: usize| {
        let values = vec![0x88; n];
        [b"\x80\x02(".as_slice(), &values, b"l."].concat()
    };
    let magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.".to_vec();
    let version = b"\x80\x02M\xe9\x03.".to_vec();
    let system = b"\x80\x02}X\x0d\0\0\0little_endian\x88s.".to_vec();
    let object = b"\x80\x02}.".to_vec();
    for (parts, refused) in [
        ([&magic, &version, &many(100), &object, &many(0)], false),
        (
            [&magic, &version, &many(1_000_000), &object, &many(0)],
            true,
        ),
        ([&magic, &version, &system, &object, &many(0)], false),
        ([&magic, &version, &system, &object, &many(1_000_000)], true),
    ] {
        let (_folder, path) = put(&parts.map(|part| &part[..]).concat());
        let read = Checkpoint::open(&path).map_err(|error| error.to_string());
        let many = read.as_ref().is_err_and(|error| error.contains("values"));
        assert_eq!(many, refused, "{read:?}");
    }
}

#[test]
fn no_part_of_a_file_and_no_flipped_byte_is_read_as_something_else() {
    let good = small();
    let (folder, path) = put(&good);
    let expected = tensors(&path).expect("a good file");
    for cut in (0..good.len()).step_by(7) {
        fs_err::write(&path, &good[..cut]).expect("a small file");
        assert!(tensors(&path).is_err(), "cut at {cut}");
    }
    for place in 0..good.len() {
        let mut bytes = good.clone();
        bytes[place] ^= 0x10;
        fs_err::write(&path, &bytes).expect("a small file");
        // A name or date may change without harm; the numbers may not.
        if let Ok(found) = tensors(&path) {
            assert_eq!(found[0].data, expected[0].data, "byte {place}");
        }
    }
    drop(folder);
}

#[test]
fn the_older_format_is_read_and_checked() {
    let magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    let version = Program::new().op(b"M\xe9\x03").end();
    let system = Program::new()
        .op(b"}")
        .text("little_endian")
        .op(b"\x88s")
        .end();
    let object = Program::new()
        .op(b"}")
        .text("module.w")
        .tensor("93", 3, 1, &[2], &[1])
        .op(b"s")
        .end();
    let names = Program::new().op(b"]").text("93").op(b"a").end();
    let head = [magic.as_slice(), &version, &system, &object, &names].concat();
    let data: Vec<u8> = 3u64
        .to_le_bytes()
        .into_iter()
        .chain([1f32, 2.0, 3.0].iter().flat_map(|v| v.to_le_bytes()))
        .collect();
    let good = [head.as_slice(), &data].concat();
    let (_folder, path) = put(&good);
    let found = tensors(&path).expect("a good file");
    assert_eq!(
        (found[0].name.as_str(), &found[0].shape[..]),
        ("module.w", &[2][..])
    );
    assert_eq!(found[0].data, TensorData::Float(vec![2.0, 3.0]));
    for cut in 0..good.len() {
        let (_folder, path) = put(&good[..cut]);
        assert!(tensors(&path).is_err(), "cut at {cut}");
    }
    let mut wrong = good;
    wrong[4] ^= 1;
    let (_folder, path) = put(&wrong);
    let error = tensors(&path)
        .expect_err("another magic number")
        .to_string();
    assert!(error.contains("magic number"), "{error}");
}

#[test]
#[ignore = "needs BB_SHARED"]
fn folders_of_backdoorbench_are_read_whole() {
    let shared = std::env::var_os("BB_SHARED").expect("BB_SHARED names the folder of the zoo");
    let zoo = PathBuf::from(shared).join("zoo");
    for folder in ["badnet_w16", "wanet_w16"] {
        let path = zoo.join(folder).join("attack_result.pt");
        let result = AttackResult::read(&path).expect("a genuine file");
        assert_eq!(result.model_name, "preactresnet18");
        assert_eq!((result.classes, result.image), (10, (32, 32)));
        assert_eq!(result.dataset, "cifar10");
        assert_eq!(result.state.len(), 102);
        assert_eq!(result.state[0].name, "conv1.weight");
        assert_eq!(result.state[0].shape, [16, 3, 3, 3]);
        assert_eq!(result.test.kept.len(), 897);
        assert_eq!(result.test.records.len(), 897);
        assert_eq!(result.test.images, 1000);
        for record in &result.test.records {
            assert_eq!(
                (record.label, record.folder.as_str()),
                (0, "bd_test_dataset")
            );
            assert_ne!(record.original, 0);
            assert!(zoo.join(folder).join(record.file()).is_file());
        }
        let train = result.train.expect("a training set");
        assert_eq!((train.images, train.kept.len()), (10_000, 10_000));
        assert!(!train.records.is_empty());
    }
}
