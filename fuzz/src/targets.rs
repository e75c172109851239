//! What is fed, and how.

use std::fmt::Write as _;
use std::io::{Cursor, Write as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bb_attack::method::Given;
use bb_attack::picture::Picture;
use bb_core::artifact::sha256_hex;
use bb_core::cell::{
    Cell, CellSpec, ENV, FAILED, Failed, Kind, LOG, MANIFEST, MODEL, POISON_TEST, SCHEMA,
};
use bb_core::data::{Images, OpenOptions, open};
use bb_core::poison::PoisonSet;
use bb_eval::cells::Filter;
use bb_eval::grid::Grid;
use bb_eval::paper::Paper;
use bb_eval::prepare::{Places, Prepared};
use bb_eval::table::Selection;
use bb_eval::zoo::{self, Rules};
use bb_nn::{ArchSpec, Compute, Net, StateDict};
use bb_zoo::Index;
use bb_zoo::safetensors::Safetensors;
use bb_zoo::torch::pickle::{Limits, Pickle};
use bb_zoo::torch::{
    AttackResult, Checkpoint, Item, NamedTensor, TensorData, attack, nested, write,
};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::{Target, datasets, made, program};

/// All readers.
pub static TARGETS: &[Target] = &[
    Target {
        name: "pickle",
        seeds: pickles,
        make: Some(program::pickle),
        read: |bytes, _| Pickle::read(bytes, Limits::default()).is_ok(),
    },
    Target {
        name: "program",
        seeds: Vec::new,
        make: Some(program_in_archive),
        read: checkpoint,
    },
    Target {
        name: "checkpoint",
        seeds: checkpoints,
        make: None,
        read: checkpoint,
    },
    Target {
        name: "manifest",
        seeds: manifests,
        make: None,
        read: manifest,
    },
    Target {
        name: "cell",
        seeds: || vec![cell().manifest.to_string().into_bytes()],
        make: Some(|random| made::manifest(&cell().manifest, random)),
        read: whole_cell,
    },
    Target {
        name: "record",
        seeds: || {
            [&b"e{\"seconds\":1.5}"[..], b"l{\"data\":{\"seconds\":2}}\n"]
                .map(<[u8]>::to_vec)
                .into()
        },
        make: Some(made::record),
        read: record_beside,
    },
    Target {
        name: "grid",
        seeds: || vec![GRID.as_bytes().to_vec()],
        make: Some(made::grid),
        read: grid,
    },
    Target {
        name: "network",
        seeds: Vec::new,
        make: Some(made::network),
        read: network,
    },
    Target {
        name: "array",
        seeds: || vec![bb_attack::npy::to_bytes(&[2, 2, 3], &[1.0; 12])],
        make: Some(made::array),
        read: |bytes, folder| {
            let path = put(folder, "t.npy", bytes);
            let whole = bb_attack::npy::read(&path).is_ok();
            let rows = bb_attack::npy::ByteArray::open(&path).and_then(|mut array| {
                let some = array.shape().first().copied().unwrap_or(0).min(2);
                array.rows(&(0..some).collect::<Vec<_>>())
            });
            whole || rows.is_ok()
        },
    },
    Target {
        name: "table",
        seeds: Vec::new,
        make: Some(|random| [b"p".to_vec(), made::table(random)].concat()),
        read: datasets::read,
    },
    Target {
        name: "image",
        seeds: Vec::new,
        make: Some(|random| [b"i".to_vec(), made::picture(random)].concat()),
        read: datasets::read,
    },
    Target {
        name: "settings",
        seeds: settings,
        make: None,
        read: settings_file,
    },
    Target {
        name: "index",
        seeds: || vec![include_bytes!("../../model_zoo/index.toml").to_vec()],
        make: None,
        read: |bytes, _| {
            std::str::from_utf8(bytes).is_ok_and(|text| Index::parse("index.toml", text).is_ok())
        },
    },
    Target {
        name: "picture",
        seeds: pictures,
        make: Some(made::picture),
        read: |bytes, folder| {
            // Wrong checksums would keep most changes from the decoder.
            let accepted = [bytes.to_vec(), with_checksums(bytes)].map(|bytes| {
                let path = put(folder, "1.png", &bytes);
                Picture::read_sized(&path, 32, 32).is_ok()
            });
            accepted.contains(&true)
        },
    },
    Target {
        name: "dataset",
        seeds: datasets::seeds,
        make: None,
        read: datasets::read,
    },
    Target {
        name: "poison",
        seeds: || vec![poison().to_bytes()],
        make: None,
        read: |bytes, _| PoisonSet::from_bytes(bytes).is_ok_and(|set| set.check(1000, 10).is_ok()),
    },
    Target {
        name: "safetensors",
        seeds: networks,
        make: None,
        read: |bytes, folder| {
            let path = put(folder, "model.safetensors", bytes);
            let _ = StateDict::metadata(bytes, &path);
            let _ = zoo::scan(&path, None, true);
            let strangers = Safetensors::open(&path).and_then(Safetensors::tensors);
            let ours = StateDict::from_bytes(bytes, &path);
            ours.is_ok() || strangers.is_ok()
        },
    },
];

/// Writes an input to where a reader of files finds it.
fn put(folder: &Path, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder.join(name);
    fs_err::write(&path, bytes).expect("a temporary folder that can be written");
    path
}

fn poison() -> PoisonSet {
    let pixels = (0..3 * 8 * 8 * 3u32).map(|i| (i * 7) as u8).collect();
    let images = Images::new(3, 8, 8, pixels).expect("the right number of pixels");
    PoisonSet::new(vec![1, 4, 9], images, vec![0; 3], vec![3, 4, 5]).expect("three images")
}

/// The record of an attack in BackdoorBench's format, small.
fn record() -> Item {
    let state = vec![
        NamedTensor {
            name: "conv1.weight".to_owned(),
            shape: vec![2, 3, 1, 1],
            data: TensorData::Float(vec![0.5; 6]),
        },
        NamedTensor {
            name: "bn1.num_batches_tracked".to_owned(),
            shape: Vec::new(),
            data: TensorData::Int(vec![7]),
        },
    ];
    let set = |folder: &str| {
        let records = [2, 3].map(|index| {
            let path = format!("./record/a/{folder}/{index}/{index}.png");
            let labels = Item::List(vec![Item::Int(0), Item::Int(index)]);
            let record = Item::dict([("path", Item::text(path)), ("other_info", labels)]);
            (Item::Int(index), record)
        });
        Item::dict([
            (
                "bd_data_container",
                Item::dict([
                    ("save_folder_path", Item::None),
                    ("data_dict", Item::Dict(records.into())),
                    ("save_file_format", Item::text(".png")),
                ]),
            ),
            ("getitem_all", Item::Bool(true)),
            ("original_index_array", Item::Integers(vec![2, 3])),
            ("poison_indicator", Item::Floats(vec![0.0, 0.0, 1.0, 1.0])),
        ])
    };
    Item::dict([
        ("model_name", Item::text("preactresnet18")),
        ("num_classes", Item::Int(10)),
        ("model", Item::State(state)),
        ("data_path", Item::text("./data/cifar10")),
        ("img_size", Item::Tuple([32, 32, 3].map(Item::Int).into())),
        ("clean_data", Item::text("cifar10")),
        ("bd_train", set("bd_train_dataset")),
        ("bd_test", set("bd_test_dataset")),
    ])
}

fn checkpoints() -> Vec<Vec<u8>> {
    let archive = |item: &Item| {
        let mut out = Cursor::new(Vec::new());
        write::archive(&mut out, "x", item).expect("memory");
        out.into_inner()
    };
    // The older format: magic number, version, system, object, names, storages.
    let old = [
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.".as_slice(),
        b"\x80\x02M\xe9\x03.",
        b"\x80\x02}X\x0d\0\0\0little_endian\x88s.",
        b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x02\0\0\093X\x03\0\0\0cpuK\x02tQK\0K\x02\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRs.",
        b"\x80\x02]X\x02\0\0\093a.",
        &2u64.to_le_bytes(),
        &1f32.to_le_bytes(),
        &2f32.to_le_bytes(),
    ]
    .concat();
    vec![archive(&record()), archive(&Item::Dict(Vec::new())), old]
}

fn pickles() -> Vec<Vec<u8>> {
    let mut pickles = Vec::new();
    for bytes in checkpoints() {
        let Ok(mut archive) = zip::ZipArchive::new(Cursor::new(bytes)) else {
            continue;
        };
        let mut pickle = Vec::new();
        let mut entry = archive.by_name("x/data.pkl").expect("it was written");
        std::io::copy(&mut entry, &mut pickle).expect("memory");
        pickles.push(pickle);
    }
    pickles
}

/// A made program in an archive with the storages that it may name.
fn program_in_archive(random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut add = |name: &str, content: &[u8]| {
        writer.start_file(name, options).expect("a new name");
        writer.write_all(content).expect("memory");
    };
    add("x/data.pkl", &program::pickle(random));
    for (key, size) in program::STORAGES {
        let content = vec![1; usize::from(*size)];
        add(&format!("x/data/{}", char::from(*key)), &content);
    }
    writer.finish().expect("memory").into_inner()
}

fn checkpoint(bytes: &[u8], folder: &Path) -> bool {
    let path = put(folder, "attack_result.pt", bytes);
    // People look at what they do not trust.
    let _ = zoo::scan(&path, None, true);
    let Ok(checkpoint) = Checkpoint::open(&path) else {
        return false;
    };
    let _ = nested::at(&checkpoint, "model.conv1.weight");
    for place in nested::places(&checkpoint) {
        let _ = attack::state(&checkpoint, &place.key, place.value);
    }
    let record = AttackResult::of(&checkpoint);
    let state = attack::state(&checkpoint, "", &checkpoint.pickle().root);
    if let Ok(record) = &record {
        for record in &record.test.records {
            assert!(record.label < 10_000 && !record.file().contains(".."));
        }
    }
    if let Ok(state) = &state {
        let arch = ArchSpec::new("preactresnet18", 1, 10).expect("a known one");
        let _ = zoo::tensors::matched(state, &arch);
        let _ = Rules::default().apply(&path, state.clone());
    }
    record.is_ok() || state.is_ok()
}

/// The only file of the cell that [`manifests`] describe.
const MODEL_BYTES: &[u8] = b"abc";

fn manifests() -> Vec<Vec<u8>> {
    let spec = CellSpec {
        kind: Kind::Attack,
        method: "badnets".to_owned(),
        dataset: "synthetic".to_owned(),
        arch: "preactresnet18-w8".to_owned(),
        settings: json!({ "target": 0, "ratio": 0.1, "train": { "lr": 0.05 } }),
        inputs: [("dataset".to_owned(), "00".to_owned())].into(),
        seed: 0,
    };
    let hash = sha256_hex(MODEL_BYTES);
    let mut manifest = serde_json::to_value(&spec).expect("plain data");
    manifest["schema"] = json!(SCHEMA);
    manifest["id"] = json!(spec.id());
    manifest["files"] = json!({ MODEL: { "bytes": MODEL_BYTES.len(), "sha256": hash } });
    manifest["results"] = json!({ "acc": { "hits": 1, "total": 2 }, "asr": null });
    vec![manifest.to_string().into_bytes()]
}

fn manifest(bytes: &[u8], folder: &Path) -> bool {
    put(folder, MODEL, MODEL_BYTES);
    put(folder, MANIFEST, bytes);
    Cell::load(folder).is_ok()
}

fn settings() -> Vec<Vec<u8>> {
    let mut grid = String::from("[grid]\nname = \"a\"\ndataset = \"synthetic\"\nseeds = [0]\n");
    for method in ["badnets", "blended"] {
        let _ = write!(grid, "\n[[attack]]\nmethod = \"{method}\"\n");
    }
    grid.push_str("\n[[defense]]\nmethod = \"tsbd\"\nset = { sweep = true }\n");
    let badnets = "target = 0\nratio = 0.1\nlabel = \"all2one\"\n[trigger]\nmargin = 4\n[train]\nepochs = 8\nlr = 0.05\n";
    let rules = "ignore = [\"aux.\"]\n[[rename]]\nfrom = \"a.\"\nto = \"\"\n";
    [badnets, &grid, rules]
        .map(|text| text.as_bytes().to_vec())
        .into()
}

fn settings_file(bytes: &[u8], folder: &Path) -> bool {
    let path = put(folder, "settings.toml", bytes);
    let set = String::from_utf8_lossy(bytes)
        .lines()
        .take(2)
        .map(str::to_owned)
        .collect();
    let mut accepted = Grid::load(&path).is_ok() | Rules::default().read(&path).is_ok();
    for (files, set) in [(vec![path], Vec::new()), (Vec::new(), set)] {
        let attack = bb_attack::registry::find("badnets").expect("it is registered");
        accepted |= attack.resolve("synthetic", &Given { files, set }).is_ok();
    }
    accepted
}

fn pictures() -> Vec<Vec<u8>> {
    let pixels = |n: usize| (0..n * n * 3).map(|i| (i * 5) as u8).collect();
    [32, 4]
        .map(|n| Picture::new(n, n, pixels(n)).to_png())
        .into()
}

/// A PNG file whose chunks have the checksums of what they hold now.
fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut at = 8;
    while let Some(head) = bytes.get(at..at + 4) {
        let len = u32::from_be_bytes(head.try_into().expect("four bytes")) as usize;
        // Kind and content, then the checksum.
        let Some(end) = len.checked_add(at + 8).filter(|end| end + 4 <= bytes.len()) else {
            break;
        };
        let crc = !bytes[at + 4..end].iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
            })
        });
        bytes[end..end + 4].copy_from_slice(&crc.to_be_bytes());
        at = end + 4;
    }
    bytes
}

fn networks() -> Vec<Vec<u8>> {
    let arch = ArchSpec::new("preactresnet18", 1, 2).expect("a known one");
    let state = Net::new(&arch, 0).state().expect("a network's tensors");
    let metadata = [("arch".to_owned(), "preactresnet18".to_owned())].into();
    vec![state.to_bytes(&metadata).expect("finite tensors")]
}

/// A cell with a network that can be measured: its manifest as a value, and its other files.
struct Whole {
    manifest: Value,
    model: Vec<u8>,
    poison: Vec<u8>,
}

fn cell() -> &'static Whole {
    static CELL: OnceLock<Whole> = OnceLock::new();
    CELL.get_or_init(|| {
        let arch = ArchSpec::new("preactresnet18", 1, 10).expect("a known one");
        let state = Net::new(&arch, 0).state().expect("a network's tensors");
        let about = [("arch", "preactresnet18"), ("width", "1"), ("classes", "10")];
        let about = about.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let model = state.to_bytes(&about.into()).expect("finite tensors");
        let limits = OpenOptions {
            train_limit: Some(64),
            test_limit: Some(20),
            ..OpenOptions::default()
        };
        let data = open("synthetic", None, &limits).expect("it is made by the program");
        let labels = &data.test.labels;
        let others: Vec<usize> = (0..20).filter(|&i| labels[i] != 0).take(3).collect();
        let original = others.iter().map(|&i| labels[i]).collect();
        let images = Images::new(3, 32, 32, vec![7; 3 * 3072]).expect("three images");
        let poison = PoisonSet::new(others, images, vec![0; 3], original);
        let poison = poison.expect("three images").to_bytes();
        let spec = CellSpec {
            kind: Kind::Attack,
            method: "badnets".to_owned(),
            dataset: "synthetic".to_owned(),
            arch: "preactresnet18-w1".to_owned(),
            settings: json!({
                "compute": { "precision": "f32" },
                "data": { "dataset": "synthetic", "test_limit": 20, "train_limit": 64 },
                "model": { "arch": "preactresnet18", "classes": 10, "width": 1 },
                "target": 0, "ratio": 0.1, "label": "all2one", "train": { "epochs": 1 },
            }),
            inputs: [("dataset".to_owned(), data.digest)].into(),
            seed: 0,
        };
        let mut manifest = serde_json::to_value(&spec).expect("plain data");
        manifest["schema"] = json!(SCHEMA);
        manifest["id"] = json!(spec.id());
        let entry = |bytes: &[u8]| json!({ "bytes": bytes.len(), "sha256": sha256_hex(bytes) });
        manifest["files"] = json!({ MODEL: entry(&model), POISON_TEST: entry(&poison) });
        let none = json!({ "hits": 0, "total": 3 });
        manifest["results"] = json!({ "acc": { "hits": 2, "total": 20 }, "asr": none, "ra": none, "poison": { "test": 3, "train": 6 } });
        Whole {
            manifest,
            model,
            poison,
        }
    })
}

/// A place of a cell below a folder of results, with the good files.
fn place(folder: &Path) -> PathBuf {
    let dir = folder.join("attack/badnets/synthetic-preactresnet18-w1/0");
    fs_err::create_dir_all(&dir).expect("a temporary folder that can be written");
    put(&dir, MODEL, &cell().model);
    put(&dir, POISON_TEST, &cell().poison);
    dir
}

fn whole_cell(bytes: &[u8], folder: &Path) -> bool {
    let dir = place(folder);
    put(&dir, MANIFEST, bytes);
    let _ =
        bb_eval::collect::from_folder(folder, &[], &Paper::tsbd_table1(), &Selection::default());
    let measured = bb_eval::verify::verify(&dir, None, None, &Compute::Cpu);
    let exported = zoo::export(&zoo::ExportRequest {
        cell: dir.clone(),
        format: zoo::Format::StateDict,
        data: None,
        out: folder.join("exported"),
    });
    let _ = fs_err::remove_dir_all(folder.join("exported"));
    if let Ok(cell) = Cell::load(&dir) {
        let _ = bb_eval::explain::explain(&cell, &[]);
        let _ = bb_eval::explain::diff(&cell, &cell);
    }
    let _ =
        bb_eval::cells::list(folder, &Filter::default()).map(|cells| bb_eval::cells::show(&cells));
    // Of another dataset's digest the figures cannot be made again; the cell itself may be a good one.
    measured.is_ok() || exported.is_ok()
}

fn record_beside(bytes: &[u8], folder: &Path) -> bool {
    let Some((kind, bytes)) = bytes.split_first() else {
        return false;
    };
    let dir = place(folder);
    for name in [ENV, LOG, FAILED] {
        let _ = fs_err::remove_file(dir.join(name));
    }
    let name = match kind {
        b'e' => ENV,
        b'l' => LOG,
        _ => FAILED,
    };
    put(&dir, name, bytes);
    put(&dir, MANIFEST, cell().manifest.to_string().as_bytes());
    let read = Failed::read(&dir).is_ok_and(|failed| failed.is_some());
    let _ =
        bb_eval::collect::from_folder(folder, &[], &Paper::tsbd_table1(), &Selection::default());
    let cell = Cell::load(&dir).expect("a good cell");
    read || bb_eval::collect::spent(&cell).0.is_some()
}

const GRID: &str = "[grid]\nname = \"a\"\ndataset = \"synthetic\"\nwidth = 1\nseeds = [0]\ntrain_limit = 64\ntest_limit = 20\n[[attack]]\nmethod = \"badnets\"\n";

fn grid(bytes: &[u8], folder: &Path) -> bool {
    let path = put(folder, "grid.toml", bytes);
    let Ok(grid) = Grid::load(&path) else {
        return false;
    };
    let places = Places {
        out: Some(folder.join("out")),
        data: None,
    };
    Prepared::new(grid, &places, &[]).is_ok_and(|prepared| bb_eval::plan::plan(&prepared).is_ok())
}

fn network(bytes: &[u8], folder: &Path) -> bool {
    let path = put(folder, "m.safetensors", bytes);
    let _ = zoo::scan(&path, None, true);
    let Ok(found) = Safetensors::open(&path).and_then(Safetensors::tensors) else {
        return false;
    };
    // How wide a network is follows from its tensors.
    for arch in bb_nn::arch::NAMES {
        if let Ok(spec) = zoo::tensors::spec(arch, 10, &found) {
            let _ = zoo::tensors::matched(&found, &spec);
        }
    }
    true
}
