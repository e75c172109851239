//! Networks in safetensors whose header lies.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Case, put};

/// A file with this header and so many bytes behind it.
fn file(header: &str, data: usize) -> Vec<u8> {
    let padded = format!("{header}{}", " ".repeat(header.len().wrapping_neg() % 8));
    let len = (padded.len() as u64).to_le_bytes();
    [&len[..], padded.as_bytes(), &vec![0; data]].concat()
}

fn described(arch: &str, more: &[(&str, Value)]) -> Value {
    let mut facts = json!({ "arch": arch, "dataset": "synthetic", "classes": "10" });
    for (key, value) in more {
        facts[key] = value.clone();
    }
    json!({ "bb": facts.to_string() })
}

fn tensor(kind: &str, shape: &Value, from: u64, to: u64) -> Value {
    json!({ "dtype": kind, "shape": shape, "data_offsets": [from, to] })
}

fn header(metadata: &Value, tensors: Vec<(String, Value)>) -> String {
    let mut all = Map::new();
    all.insert("__metadata__".to_owned(), metadata.clone());
    all.extend(tensors);
    Value::Object(all).to_string()
}

fn files() -> Vec<(String, Vec<u8>)> {
    let none = |name: &str, shape: Value| (name.to_owned(), tensor("F32", &shape, 0, 0));
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    // The width of a network, from a tensor that holds nothing.
    for (arch, first) in [
        ("preactresnet18", "conv1.weight"),
        ("resnet18", "conv1.weight"),
        ("resnet34", "conv1.weight"),
        ("vgg19_bn", "features.0.weight"),
    ] {
        for width in [512u64, 4096, 1 << 20, 1 << 40, u64::MAX] {
            let tensors = vec![none(first, json!([width, 0, 3, 3]))];
            let text = header(&described(arch, &[]), tensors);
            all.push((format!("{arch} {width} wide"), file(&text, 0)));
        }
    }
    let kinds = described("preactresnet18", &[]);
    for (name, shape) in [
        ("2^62 numbers", json!([1u64 << 62])),
        ("2^64 numbers by a product", json!([1u64 << 32, 1u64 << 32])),
        ("negative", json!([-1, 3, 3, 3])),
        ("no integer", json!([1.5])),
        (
            "beyond 64 bits",
            serde_json::from_str("[99999999999999999999999]").expect("JSON"),
        ),
        ("65 axes", json!(vec![1; 65])),
        ("100,000 axes", json!(vec![1; 100_000])),
        ("a million axes of nothing", json!(vec![0; 1_000_000])),
    ] {
        let text = header(&kinds, vec![none("conv1.weight", shape)]);
        all.push((format!("a shape: {name}"), file(&text, 0)));
    }
    for (name, from, to) in [
        ("behind the file", 1u64 << 40, (1u64 << 40) + 4),
        ("backwards", 8, 4),
        ("without end", 0, u64::MAX),
        ("one byte too many", 0, 5),
    ] {
        let text = header(
            &kinds,
            vec![(
                "conv1.weight".to_owned(),
                tensor("F32", &json!([1]), from, to),
            )],
        );
        all.push((format!("bytes {name}"), file(&text, 4)));
    }
    let same = (0..100).map(|i| (format!("x{i}"), tensor("F32", &json!([1024]), 0, 4096)));
    all.push((
        "100 tensors in one place".to_owned(),
        file(&header(&kinds, same.collect()), 4096),
    ));
    for kind in ["F4", "F8_E4M3", "BOOL", "I128", "", "C64", "\u{1b}[31mred"] {
        let text = header(
            &kinds,
            vec![("conv1.weight".to_owned(), tensor(kind, &json!([1]), 0, 4))],
        );
        all.push((format!("type `{}`", kind.escape_debug()), file(&text, 4)));
    }
    for count in [20_001, 60_000] {
        let names: Vec<String> = (0..count).map(|i| format!("y{i}")).collect();
        let tensors: Vec<_> = (0..count)
            .map(|i| none(&format!("x{i}"), json!([0])))
            .collect();
        let ordered = described("preactresnet18", &[("order", json!(names))]);
        all.push((
            format!("{count} tensors in an order"),
            file(&header(&ordered, tensors.clone()), 0),
        ));
        all.push((
            format!("{count} tensors"),
            file(&header(&kinds, tensors), 0),
        ));
    }
    let twice = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    all.push(("a name twice".to_owned(), file(twice, 4)));
    all.push((
        "metadata twice".to_owned(),
        file(r#"{"__metadata__":{},"__metadata__":{}}"#, 0),
    ));
    for depth in [200, 100_000, 3_000_000] {
        let text = format!("{{\"__metadata__\":{}", "[".repeat(depth));
        all.push((format!("brackets {depth} deep"), file(&text, 0)));
        let nested = format!("{{\"arch\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        let text = header(&json!({ "bb": nested }), Vec::new());
        all.push((format!("metadata {depth} deep"), file(&text, 0)));
    }
    let long = "n".repeat(4 << 20);
    all.push((
        "a name of 4 MiB".to_owned(),
        file(&header(&kinds, vec![none(&long, json!([0]))]), 0),
    ));
    all.push((
        "metadata of 4 MiB".to_owned(),
        file(&header(&described(&long, &[]), Vec::new()), 0),
    ));
    let colours = "\u{1b}[31m\u{7}\r\u{202e}";
    all.push((
        "a name of control characters".to_owned(),
        file(&header(&kinds, vec![none(colours, json!([0]))]), 0),
    ));
    all.push((
        "an architecture of control characters".to_owned(),
        file(&header(&described(colours, &[]), Vec::new()), 0),
    ));
    for classes in [
        "0",
        "-1",
        "1",
        "10001",
        "1000000000000",
        "99999999999999999999",
        "ten",
    ] {
        let metadata = described("preactresnet18", &[("classes", json!(classes))]);
        let text = header(&metadata, vec![none("conv1.weight", json!([8, 0, 3, 3]))]);
        all.push((format!("{classes} classes"), file(&text, 0)));
    }
    for len in [
        0u64,
        1,
        7,
        8 << 20,
        (8 << 20) + 1,
        1 << 32,
        1 << 63,
        u64::MAX,
    ] {
        all.push((
            format!("a header of {len} bytes"),
            [&len.to_le_bytes()[..], b"{}"].concat(),
        ));
    }
    let mut spaces = (8u64 << 20).to_le_bytes().to_vec();
    spaces.push(b'{');
    spaces.resize(8 + (8 << 20), b' ');
    all.push(("a header of 8 MiB of spaces".to_owned(), spaces));
    let mut commas = (8u64 << 20).to_le_bytes().to_vec();
    commas.extend_from_slice(b"{\"__metadata__\":{\"a\":\"b\"},\"x\":[0");
    commas.extend(b",0".repeat(4 << 20));
    commas.truncate(8 + (8 << 20));
    all.push(("a header of 8 MiB of numbers".to_owned(), commas));
    all
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, bytes) in files() {
        for command in [
            "eval zoo import m.safetensors --dataset synthetic --threads 1 --out out",
            "eval zoo scan m.safetensors",
        ] {
            let bytes = bytes.clone();
            let case = Case::new(
                "networks in safetensors",
                format!("{name}: {command}"),
                command,
                move |folder: &Path| {
                    put(&folder.join("m.safetensors"), &bytes);
                },
            );
            // A scan shows what is there, whether it makes sense or not.
            cases.push(if command.contains("scan") {
                case.harmless()
            } else {
                case
            });
        }
    }
    cases
}
