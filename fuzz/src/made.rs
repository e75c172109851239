//! Inputs that are made, not changed: whole files of a format, in which a few numbers, names or sizes are lies.
//!
//! Bits that are flipped at random are mostly caught by the first check; these pass the checks and mean it.

use std::fmt::Write as _;
use std::sync::OnceLock;

use bb_core::artifact::sha256_hex;
use bb_core::cell::canonical_json;
use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

use crate::parquet::{self, File, Page};

/// Numbers at which readers go wrong.
const NUMBERS: [i64; 22] = [
    0,
    1,
    2,
    -1,
    3,
    7,
    64,
    255,
    256,
    257,
    10_000,
    65_535,
    65_536,
    1_000_000,
    1 << 24,
    1 << 30,
    i32::MAX as i64,
    i32::MIN as i64,
    1 << 32,
    1_000_000_000_000,
    i64::MAX,
    i64::MIN,
];

fn number(random: &mut ChaCha8Rng) -> i64 {
    *NUMBERS.choose(random).expect("some numbers")
}

/// A name that means something somewhere.
fn name(random: &mut ChaCha8Rng) -> String {
    let names = [
        "",
        ".",
        "..",
        "../../x",
        "/",
        "a/b",
        "a\\b",
        "\u{1b}[31m",
        "\r\n",
        "\u{202e}",
        "=1+1",
        "lock",
        "ckpt",
        "manifest.json",
        "NaN",
        "1e999",
        "synthetic",
        "preactresnet18",
        "badnets",
        "-w64",
    ];
    let name = *names.choose(random).expect("some names");
    let times = if random.random_bool(0.1) { 2000 } else { 1 };
    name.repeat(times)
}

/// A value that was not expected.
fn value(random: &mut ChaCha8Rng) -> Value {
    match random.random_range(0..12) {
        0..=4 => json!(number(random)),
        5 => json!(u64::MAX),
        6 => json!(
            *[1e300, -0.0, 1e-300, 0.5, 2.0]
                .choose(random)
                .expect("numbers")
        ),
        7 => json!(name(random)),
        8 => json!(null),
        9 => json!(random.random::<bool>()),
        10 => {
            let depth = *[3, 100, 200, 2000].choose(random).expect("depths");
            (0..depth).fold(json!(0), |inner, _| json!([inner]))
        }
        _ => {
            let count = *[3usize, 1000, 200_000].choose(random).expect("counts");
            json!(vec![number(random); count])
        }
    }
}

/// Changes one value of a tree, or its keys.
fn change(tree: &mut Value, random: &mut ChaCha8Rng) {
    let goes_on = random.random_bool(0.8);
    match tree {
        Value::Object(map) if !map.is_empty() && goes_on => {
            let keys: Vec<String> = map.keys().cloned().collect();
            let key = keys.choose(random).expect("a key");
            match random.random_range(0..12) {
                0 => drop(map.remove(key)),
                1 => drop(map.insert(name(random), value(random))),
                2 => {
                    let moved = map.remove(key).expect("it is there");
                    map.insert(name(random), moved);
                }
                _ => change(&mut map[key], random),
            }
        }
        Value::Array(items) if !items.is_empty() && goes_on => {
            let at = random.random_range(0..items.len());
            change(&mut items[at], random);
        }
        other => *other = value(random),
    }
}

/// The text of a tree, in which a key may stand twice.
fn text(tree: &Value, random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut text = tree.to_string();
    if random.random_bool(0.05) {
        let places: Vec<usize> = text
            .match_indices(['{', ','])
            .map(|(at, _)| at + 1)
            .collect();
        let at = *places.choose(random).unwrap_or(&0);
        let key = ["seed", "files", "results", "bytes", "width"]
            .choose(random)
            .expect("a key");
        text.insert_str(at, &format!("\"{key}\":{},", number(random)));
    }
    text.into_bytes()
}

/// Gives a manifest the identity that follows from it.
fn identified(manifest: &mut Value) {
    let from = [
        "schema", "kind", "method", "dataset", "arch", "settings", "inputs", "seed",
    ];
    let part = |key: &str| (key.to_owned(), manifest[key].clone());
    let spec: Map<String, Value> = from.into_iter().map(part).collect();
    let mut id = sha256_hex(canonical_json(&Value::Object(spec)));
    id.truncate(16);
    if let Value::Object(manifest) = manifest {
        manifest.insert("id".to_owned(), json!(id));
    }
}

/// A manifest that fits itself.
pub(crate) fn manifest(good: &Value, random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut manifest = good.clone();
    for _ in 0..random.random_range(1..=3) {
        change(&mut manifest, random);
    }
    if random.random_bool(0.9) {
        identified(&mut manifest);
    }
    text(&manifest, random)
}

/// What lies beside a manifest: the first byte says which file it is.
pub(crate) fn record(random: &mut ChaCha8Rng) -> Vec<u8> {
    let kind = *b"elf".choose(random).expect("three kinds");
    let mut tree = json!({ "seconds": 1.5, "attack_cell": "x", "data": { "seconds": 2 }, "code": 3, "error": "no", "version": "0.1.0" });
    change(&mut tree, random);
    let line = text(&tree, random);
    let lines = if random.random_bool(0.1) { 3000 } else { 2 };
    let mut bytes = vec![kind];
    for _ in 0..if kind == b'l' { lines } else { 1 } {
        bytes.extend_from_slice(&line);
        bytes.push(b'\n');
    }
    bytes
}

/// A grid, as TOML writes what JSON can say.
pub(crate) fn grid(random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut tree = json!({
        "grid": { "name": "g", "dataset": "synthetic", "arch": "preactresnet18", "width": 1, "seeds": [0, 1], "train_limit": 64, "test_limit": 20 },
        "attack": [{ "method": "badnets", "set": { "train": { "epochs": 1, "batch_size": 32 } } }, { "method": "blended" }],
        "defense": [{ "method": "ft", "set": { "clean": { "ratio": 0.2 } } }, { "method": "clp" }],
    });
    for _ in 0..random.random_range(1..=2) {
        change(&mut tree, random);
    }
    let mut lines = String::new();
    if let Value::Object(tables) = &tree {
        for (key, value) in tables {
            let _ = writeln!(lines, "{} = {}", json!(key), toml(value));
        }
    }
    lines.into_bytes()
}

fn toml(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let entries = map
                .iter()
                .map(|(key, value)| format!("{} = {}", json!(key), toml(value)));
            format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
        }
        Value::Array(items) => {
            let items = items.iter().map(toml);
            format!("[{}]", items.collect::<Vec<_>>().join(","))
        }
        Value::Null => "\"\"".to_owned(),
        other => other.to_string(),
    }
}

/// A network in safetensors whose offsets fit, whatever the rest says.
pub(crate) fn network(random: &mut ChaCha8Rng) -> Vec<u8> {
    let arch = ["preactresnet18", "resnet18", "resnet34", "vgg19_bn"]
        .choose(random)
        .expect("some");
    let (mut tensors, mut at) = (Map::new(), 0u64);
    let names = [
        "conv1.weight",
        "features.0.weight",
        "layer1.0.conv1.weight",
        "linear.weight",
        "linear.bias",
        "fc.weight",
        "x",
    ];
    let count = *[1usize, 2, 5, 5000, 25_000].choose(random).expect("counts");
    for i in 0..count {
        let own = if i < 5 {
            (*names.choose(random).expect("names")).to_owned()
        } else {
            format!("t{i}")
        };
        let axes = if random.random_bool(0.02) {
            500
        } else {
            random.random_range(0..6)
        };
        let shape: Vec<u64> = (0..axes).map(|_| number(random).unsigned_abs()).collect();
        // Most tensors are empty, so that a few bytes can say anything.
        let elements = shape.iter().try_fold(1u64, |all, &n| all.checked_mul(n));
        let (shape, size) = match elements {
            Some(n) if n <= 4096 => (shape, 4 * n),
            _ => (shape.into_iter().chain([0]).collect(), 0),
        };
        tensors.insert(
            own,
            json!({ "dtype": "F32", "shape": shape, "data_offsets": [at, at + size] }),
        );
        at += size;
    }
    let mut facts = json!({ "arch": arch, "dataset": "synthetic", "classes": "10" });
    if random.random_bool(0.3) {
        facts["order"] = json!(tensors.keys().rev().collect::<Vec<_>>());
    }
    if random.random_bool(0.3) {
        change(&mut facts, random);
    }
    let mut header = json!({ "__metadata__": { "bb": facts.to_string() } });
    header.as_object_mut().expect("an object").extend(tensors);
    let mut text = text(&header, random);
    text.resize(text.len().next_multiple_of(8), b' ');
    let data = vec![0; usize::try_from(at).expect("small")];
    [&(text.len() as u64).to_le_bytes()[..], &text, &data].concat()
}

/// An array of NumPy.
pub(crate) fn array(random: &mut ChaCha8Rng) -> Vec<u8> {
    let kinds = ["<f4", "<f8", ">f4", "|u1", "<i8", "|O", "<f2", "<U9", ""];
    let kind = *kinds.choose(random).expect("kinds");
    let axes = if random.random_bool(0.05) {
        3000
    } else {
        random.random_range(0..5)
    };
    let sizes: Vec<i64> = (0..axes).map(|_| number(random)).collect();
    let shape = sizes.iter().map(|n| format!("{n}, "));
    let shape = shape.collect::<Vec<_>>().concat();
    let order = if random.random_bool(0.9) {
        "False"
    } else {
        "True"
    };
    let mut header =
        format!("{{'descr': '{kind}', 'fortran_order': {order}, 'shape': ({shape}), }}");
    if random.random_bool(0.05) {
        header = header.replace('(', &"(".repeat(20_000));
    }
    let fits = sizes
        .iter()
        .try_fold(8i64, |all, n| all.checked_mul(*n))
        .filter(|n| (0..1 << 16).contains(n));
    let data = fits.unwrap_or(number(random).rem_euclid(1 << 16));
    let len = (header.len() as u16).to_le_bytes();
    [
        &b"\x93NUMPY\x01\0"[..],
        &len,
        header.as_bytes(),
        &vec![1; data as usize],
    ]
    .concat()
}

/// A PNG file whose checksums are right.
pub(crate) fn picture(random: &mut ChaCha8Rng) -> Vec<u8> {
    let size = |random: &mut ChaCha8Rng| {
        if random.random_bool(0.6) {
            32
        } else {
            number(random) as u32
        }
    };
    let (width, height) = (size(random), size(random));
    let colours = [
        [8, 2, 0, 0, 0],
        [16, 6, 0, 0, 1],
        [1, 0, 0, 0, 0],
        [8, 3, 0, 0, 1],
        [8, 0, 0, 0, 0],
        [9, 9, 9, 9, 9],
    ];
    let header = [
        &width.to_be_bytes()[..],
        &height.to_be_bytes(),
        colours.choose(random).expect("some"),
    ]
    .concat();
    let mut file = [b"\x89PNG\r\n\x1a\n".to_vec(), chunk(*b"IHDR", &header)].concat();
    for _ in 0..random.random_range(0..4) {
        let zeros = *[0usize, 100, 3104, 1 << 20, 32 << 20]
            .choose(random)
            .expect("sizes");
        let packed = zlib(zeros);
        let text = [b"a\0\0".to_vec(), packed.clone()].concat();
        let one = match random.random_range(0..7) {
            0 => chunk(*b"zTXt", &text),
            1 => chunk(*b"iCCP", &text),
            2 => chunk(*b"iTXt", &[b"a\0\x01\0\0\0".to_vec(), packed].concat()),
            3 => chunk(*b"PLTE", &vec![7; zeros.min(768)]),
            4 => chunk(*b"tRNS", &vec![7; zeros.min(300)]),
            _ => chunk(*b"IDAT", &packed),
        };
        let times = if random.random_bool(0.05) && one.len() < 200 {
            3000
        } else {
            1
        };
        file.extend(one.repeat(times));
    }
    file.extend(chunk(*b"IDAT", &zlib(97 * 32)));
    file.extend(chunk(*b"IEND", b""));
    file
}

fn chunk(kind: [u8; 4], content: &[u8]) -> Vec<u8> {
    let mut crc = flate2::Crc::new();
    crc.update(&kind);
    crc.update(content);
    [
        &(content.len() as u32).to_be_bytes()[..],
        &kind,
        content,
        &crc.sum().to_be_bytes(),
    ]
    .concat()
}

fn zlib(zeros: usize) -> Vec<u8> {
    let mut packer = flate2::read::ZlibEncoder::new(
        std::io::Read::take(std::io::repeat(0), zeros as u64),
        flate2::Compression::fast(),
    );
    let mut packed = Vec::new();
    std::io::Read::read_to_end(&mut packer, &mut packed).expect("memory");
    packed
}

/// A table of images.
pub(crate) fn table(random: &mut ChaCha8Rng) -> Vec<u8> {
    static PICTURE: OnceLock<Vec<u8>> = OnceLock::new();
    let small =
        PICTURE.get_or_init(|| bb_attack::picture::Picture::new(32, 32, vec![9; 3072]).to_png());
    let some = |random: &mut ChaCha8Rng| random.random_bool(0.15).then(|| number(random));
    let mut file = if random.random_bool(0.5) {
        let count = random.random_range(1..20);
        parquet::images(&vec![small.clone(); count], random.random())
    } else {
        let rows = number(random).max(1);
        let pages = *[1, 2, 16, 256].choose(random).expect("some");
        parquet::repeated(small, rows, pages)
    };
    for column in &mut file.columns {
        column.values = some(random).unwrap_or(column.values);
        for page in &mut column.pages {
            page.lies.values = some(random);
            page.lies.plain = some(random);
            page.lies.packed = some(random);
        }
        if random.random_bool(0.05) {
            let zeros = *[1usize << 10, 1 << 20, 64 << 20]
                .choose(random)
                .expect("sizes");
            column.pages.push(Page {
                gzip: true,
                ..Page::data(vec![0; zeros], number(random), 2)
            });
        }
    }
    file.rows = some(random).unwrap_or(file.rows);
    file.shift = some(random).unwrap_or(0);
    file.schema_count = some(random).map(|n| n as u64);
    file.group_count = some(random).map(|n| n as u64);
    if random.random_bool(0.1) {
        file.footer = Some(number(random) as u32);
    }
    if random.random_bool(0.1) {
        file.groups = *[0usize, 2, 5000].choose(random).expect("some");
    }
    if random.random_bool(0.1) {
        let depth = *[10usize, 1000, 20_000].choose(random).expect("depths");
        let leaf = parquet::element("x", Some(6), None);
        let group = parquet::element("g", None, Some(some(random).unwrap_or(1)));
        let mut schema = vec![group; depth];
        schema.push(leaf);
        file = File { schema, ..file };
    }
    file.bytes()
}
