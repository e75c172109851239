//! What is written is read back as it was, lies where PyTorch expects it, and is the same bytes each time.

use std::io::{Cursor, Write};

use bb_zoo::torch::pickle::{Limits, Object, Pickle, Value};
use bb_zoo::torch::{AttackResult, Checkpoint, Item, NamedTensor, TensorData, attack, write};
use proptest::prelude::*;
use zip::{CompressionMethod, ZipArchive};

fn bytes(root: &str, item: &Item) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    write::archive(&mut out, root, item).expect("memory");
    out.into_inner()
}

fn tensor(name: &str, shape: &[usize], data: TensorData) -> NamedTensor {
    NamedTensor {
        name: name.to_owned(),
        shape: shape.to_vec(),
        data,
    }
}

/// The pickle in an archive.
fn pickle(archive: &[u8], root: &str) -> Pickle {
    let mut archive = ZipArchive::new(Cursor::new(archive)).expect("an archive");
    let mut entry = archive
        .by_name(&format!("{root}/data.pkl"))
        .expect("a pickle");
    let mut bytes = Vec::new();
    std::io::copy(&mut entry, &mut bytes).expect("memory");
    Pickle::read(&bytes, Limits::default()).expect("an allowed pickle")
}

fn state() -> Vec<NamedTensor> {
    vec![
        tensor(
            "conv1.weight",
            &[2, 3, 1, 1],
            TensorData::Float(vec![1.5, -0.0, 3.0, 4.0, f32::MIN_POSITIVE, 6.0]),
        ),
        tensor("bn.num_batches_tracked", &[], TensorData::Int(vec![-7])),
        tensor("empty", &[0, 4], TensorData::Float(Vec::new())),
    ]
}

#[test]
fn a_state_dictionary_comes_back_bit_by_bit() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.pth");
    fs_err::write(&path, bytes("model", &Item::State(state()))).expect("a small file");
    let checkpoint = Checkpoint::open(&path).expect("our own file");
    let found = attack::state(&checkpoint, "", &checkpoint.pickle().root).expect("tensors");
    assert_eq!(found, state());
    let TensorData::Float(values) = &found[0].data else {
        panic!("floats were written");
    };
    assert!(values[1].is_sign_negative(), "the sign of zero is kept");
}

#[test]
fn every_file_is_stored_and_begins_at_a_multiple_of_64() {
    let archive = bytes("model", &Item::State(state()));
    assert_eq!(
        archive,
        bytes("model", &Item::State(state())),
        "equal values"
    );
    let mut archive = ZipArchive::new(Cursor::new(archive)).expect("an archive");
    let mut names = Vec::new();
    for i in 0..archive.len() {
        let entry = archive.by_index(i).expect("a file");
        assert_eq!(entry.compression(), CompressionMethod::Stored);
        let start = entry.data_start().expect("it was looked up");
        assert_eq!(start % 64, 0, "{:?} begins at {start}", entry.name());
        names.push(entry.name().expect("ASCII").into_owned());
    }
    assert_eq!(
        names,
        [
            "model/data.pkl",
            "model/byteorder",
            "model/data/0",
            "model/data/1",
            "model/data/2",
            "model/version"
        ]
    );
}

#[test]
fn every_kind_of_value_is_read_as_what_it_was() {
    let numbers = [
        0,
        255,
        256,
        65_535,
        65_536,
        -1,
        i64::from(i32::MIN),
        i64::MIN,
    ];
    let item = Item::dict([
        ("none", Item::None),
        ("true", Item::Bool(true)),
        ("numbers", Item::Tuple(numbers.map(Item::Int).into())),
        ("empty", Item::List(Vec::new())),
        ("floats", Item::Floats(vec![0.0, 1.0, -2.5])),
        ("integers", Item::Integers(vec![255, -1, i64::MAX])),
        ("text", Item::text("h\u{e9}llo".repeat(20))),
    ]);
    let read = pickle(&bytes("x", &item), "x");
    let entries = read.dict(&read.root).expect("a dictionary");
    let find = |key: &str| {
        let is = |entry: &&(Value, Value)| entry.0 == Value::Text(key.into());
        &entries.iter().find(is).expect("it was written").1
    };
    assert_eq!(*find("none"), Value::None);
    assert_eq!(*find("true"), Value::Bool(true));
    let found = read.sequence(find("numbers")).expect("a tuple");
    assert_eq!(found, numbers.map(Value::Int));
    assert_eq!(read.object(find("empty")), Some(&Object::List(Vec::new())));
    let array = |key| match read.object(find(key)) {
        Some(Object::Array(Some(array))) => array.data.as_chunks::<8>().0.to_vec(),
        other => panic!("{key} is {other:?}"),
    };
    assert_eq!(array("floats"), [0.0f64, 1.0, -2.5].map(f64::to_le_bytes));
    assert_eq!(array("integers"), [255, -1, i64::MAX].map(i64::to_le_bytes));
    assert_eq!(
        *find("text"),
        Value::Text("h\u{e9}llo".repeat(20).as_str().into())
    );
}

#[test]
fn the_record_of_an_attack_is_read_as_one() {
    let set = |folder: &str, records: &[(i64, i64)], kept: Vec<i64>| {
        let mut indicator = vec![0.0; 12];
        let data = records
            .iter()
            .map(|&(index, label)| {
                indicator[usize::try_from(index).expect("small")] = 1.0;
                let path = Item::text(format!("./record/a/{folder}/{label}/{index}.png"));
                let labels = Item::List(vec![Item::Int(0), Item::Int(label)]);
                (
                    Item::Int(index),
                    Item::dict([("path", path), ("other_info", labels)]),
                )
            })
            .collect();
        Item::dict([
            (
                "bd_data_container",
                Item::dict([("data_dict", Item::Dict(data))]),
            ),
            ("original_index_array", Item::Integers(kept)),
            ("poison_indicator", Item::Floats(indicator)),
        ])
    };
    let item = Item::dict([
        ("model_name", Item::text("preactresnet18")),
        ("num_classes", Item::Int(10)),
        ("model", Item::State(state())),
        ("img_size", Item::Tuple([32, 32, 3].map(Item::Int).into())),
        ("clean_data", Item::text("cifar10")),
        (
            "bd_train",
            set("bd_train_dataset", &[(3, 4)], (0..12).collect()),
        ),
        (
            "bd_test",
            set("bd_test_dataset", &[(1, 2), (11, 9)], vec![1, 11]),
        ),
    ]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("attack_result.pt");
    fs_err::write(&path, bytes("attack_result", &item)).expect("a small file");
    let found = AttackResult::read(&path).expect("a good record");
    assert_eq!((found.classes, found.image), (10, (32, 32)));
    assert_eq!(found.state, state());
    assert_eq!(found.test.kept, [1, 11]);
    assert_eq!(found.test.images, 12);
    let records: Vec<_> = found
        .test
        .records
        .iter()
        .map(|r| (r.index, r.label, r.original, r.file()))
        .collect();
    assert_eq!(
        records,
        [
            (1, 0, 2, "bd_test_dataset/2/1.png".to_owned()),
            (11, 0, 9, "bd_test_dataset/9/11.png".to_owned())
        ]
    );
    assert_eq!(found.train.expect("a training set").records.len(), 1);
}

#[test]
fn what_the_format_does_not_hold_is_refused() {
    let refused = |root: &str, item: &Item| {
        let error = write::archive(Cursor::new(Vec::new()), root, item).expect_err("refused");
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        error.to_string()
    };
    let wrong = Item::State(vec![tensor("w", &[2, 2], TensorData::Float(vec![1.0; 3]))]);
    assert_eq!(
        refused("x", &wrong),
        "tensor `w` of shape [2, 2] with 3 elements cannot be written"
    );
    let error = refused("../x", &Item::None);
    assert_eq!(error, "`../x` as folder of an archive cannot be written");
}

/// Fails at one call, and works again behind it, as a disk does that was full for a moment.
struct Broken {
    out: Vec<u8>,
    left: usize,
}

impl Write for Broken {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let Some(left) = self.left.checked_sub(1) else {
            self.left = usize::MAX;
            return Err(std::io::Error::other("full"));
        };
        self.left = left;
        self.out.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_write_that_fails_is_an_error_wherever_it_is() {
    let item = Item::State(state());
    let whole = bytes("x", &item);
    for left in 0.. {
        let mut out = Broken {
            out: Vec::new(),
            left,
        };
        let Err(error) = write::archive(&mut out, "x", &item) else {
            assert!(left > 0, "nothing was written");
            assert_eq!(out.out, whole);
            break;
        };
        assert_eq!(error.to_string(), "full");
    }
}

fn any_item() -> impl Strategy<Value = Item> {
    let leaf = prop_oneof![
        Just(Item::None),
        any::<bool>().prop_map(Item::Bool),
        any::<i64>().prop_map(Item::Int),
        "\\PC{0,40}".prop_map(Item::Text),
    ];
    leaf.prop_recursive(4, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Item::List),
            prop::collection::vec(inner.clone(), 0..8).prop_map(Item::Tuple),
            prop::collection::vec(("\\PC{0,9}".prop_map(Item::Text), inner), 0..8)
                .prop_map(Item::Dict),
        ]
    })
}

/// Whether a value was read as what was written.
fn same(pickle: &Pickle, value: &Value, item: &Item) -> bool {
    let all = |values: Option<&[Value]>, items: &[Item]| {
        values.is_some_and(|values| {
            values.len() == items.len() && values.iter().zip(items).all(|(v, i)| same(pickle, v, i))
        })
    };
    match item {
        Item::None => *value == Value::None,
        Item::Bool(b) => *value == Value::Bool(*b),
        Item::Int(n) => *value == Value::Int(*n),
        Item::Text(text) => *value == Value::Text(text.as_str().into()),
        Item::List(items) => {
            matches!(pickle.object(value), Some(Object::List(_)))
                && all(pickle.sequence(value), items)
        }
        Item::Tuple(items) => {
            matches!(pickle.object(value), Some(Object::Tuple(_)))
                && all(pickle.sequence(value), items)
        }
        Item::Dict(entries) => pickle.dict(value).is_some_and(|found| {
            found.len() == entries.len()
                && found
                    .iter()
                    .zip(entries)
                    .all(|(f, e)| same(pickle, &f.0, &e.0) && same(pickle, &f.1, &e.1))
        }),
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_nesting_comes_back(item in any_item()) {
        let read = pickle(&bytes("x", &item), "x");
        prop_assert!(same(&read, &read.root, &item));
    }
}
