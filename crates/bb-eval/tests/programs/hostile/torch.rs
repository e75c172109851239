//! Checkpoints of PyTorch: what `crates/bb-zoo/tests/hostile.rs` shows of the reader, of the programs.

use std::io::{Cursor, Write as _};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::{Base, Case, put};

fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, content) in files {
        writer.start_file(*name, options).expect("a new name");
        writer.write_all(content).expect("memory");
    }
    writer.finish().expect("memory").into_inner()
}

/// An archive whose last file says that it is packed, and is.
fn packed(files: &[(&str, &[u8])], zeros: u32) -> Vec<u8> {
    let (name, _) = files.last().expect("a file");
    let mut writer = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    let written = writer
        .write_all(&vec![0; zeros as usize])
        .and_then(|()| writer.finish());
    let content = written.expect("memory");
    let mut files = files.to_vec();
    let last = files.len() - 1;
    files[last] = (name, &content);
    let mut bytes = archive(&files);
    // The last headers of each kind: the method and the unpacked size, which nothing here writes.
    for (mark, method, length) in [(b"PK\x03\x04", 8, 22), (b"PK\x01\x02", 10, 24)] {
        let at = bytes
            .windows(4)
            .rposition(|four| four == mark)
            .expect("a header");
        bytes[at + method] = 8;
        bytes[at + length..at + length + 4].copy_from_slice(&zeros.to_le_bytes());
    }
    bytes
}

fn pickle(opcodes: &[&[u8]]) -> Vec<u8> {
    [b"\x80\x02".as_slice(), &opcodes.concat(), b"."].concat()
}

fn stored(opcodes: &[&[u8]]) -> Vec<u8> {
    archive(&[("x/data.pkl", &pickle(opcodes))])
}

fn text(text: &str) -> Vec<u8> {
    let len = u32::try_from(text.len()).expect("short").to_le_bytes();
    [b"X".as_slice(), &len, text.as_bytes()].concat()
}

/// A tensor of `shape` in a storage of `len` floats.
fn tensor(key: &str, len: u32, shape: &[u32]) -> Vec<u8> {
    let number = |n: &u32| [b"J".as_slice(), &n.to_le_bytes()].concat();
    let shape: Vec<u8> = shape.iter().flat_map(number).collect();
    let zeros: Vec<u8> = b"K\0".repeat(shape.len() / 5);
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((".as_slice(),
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text(key),
        &text("cpu"),
        &number(&len),
        b"tQK\0(",
        &shape,
        b"t(",
        &zeros,
        b"t\x89ccollections\nOrderedDict\n)RtR",
    ]
    .concat()
}

fn files() -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |name: &str, bytes| all.push((name.to_owned(), bytes));
    for depth in [1_000, 1_000_000] {
        for (name, open, close) in [
            ("lists", &b"]"[..], &b"a"[..]),
            ("tuples", b"(", b"t"),
            ("dictionaries", b"}N", b"s"),
        ] {
            let inner: &[u8] = b"N";
            add(
                &format!("{name} {depth} deep"),
                stored(&[&open.repeat(depth), inner, &close.repeat(depth)]),
            );
        }
    }
    add(
        "3,000,000 values",
        stored(&[b"](", &b"N".repeat(3_000_000), b"e"]),
    );
    add(
        "a call of the system",
        stored(&[b"cos\nsystem\n(", &text("touch away"), b"tR"]),
    );
    add(
        "a name of control characters",
        stored(&[b"c\x1b[31m\nred\n"]),
    );
    for len in [u32::MAX, 1 << 31] {
        let len_bytes = len.to_le_bytes();
        for code in [b'X', b'T', b'B', 0x8b] {
            add(
                &format!("{len} bytes by opcode {code:#x}"),
                stored(&[&[code], &len_bytes]),
            );
        }
    }
    for shape in [
        &[1u32 << 30, 1 << 30][..],
        &[i32::MAX as u32; 4],
        &[0, i32::MAX as u32],
        &[1; 64],
    ] {
        let entry = [
            b"}".to_vec(),
            text("conv1.weight"),
            tensor("0", 4, shape),
            b"s".to_vec(),
        ]
        .concat();
        let bytes = archive(&[("x/data.pkl", &pickle(&[&entry])), ("x/data/0", &[0; 16])]);
        add(&format!("a tensor of {shape:?} in 16 bytes"), bytes);
    }
    let many: Vec<u8> = (0..30_000)
        .flat_map(|i| [text(&format!("t{i}")), tensor("0", 4, &[4])].concat())
        .collect();
    let bytes = archive(&[
        ("x/data.pkl", &pickle(&[b"}(", &many, b"u"])),
        ("x/data/0", &[0; 16]),
    ]);
    add("30,000 tensors of one storage", bytes);
    add(
        "a packed pickle of 300 MiB",
        packed(&[("x/data.pkl", &[])], 300 << 20),
    );
    add(
        "a packed storage of 300 MiB",
        packed(
            &[("x/data.pkl", &pickle(&[b"}"])), ("x/data/0", &[])],
            300 << 20,
        ),
    );
    let names: Vec<String> = (0..70_000).map(|i| format!("x/{i}")).collect();
    let crowd: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    add("70,000 files", archive(&crowd));
    add(
        "two pickles",
        archive(&[
            ("x/data.pkl", &pickle(&[b"}"])),
            ("y/data.pkl", &pickle(&[b"}"])),
        ]),
    );
    add(
        "a name that leads out",
        archive(&[("../../away.pkl", &pickle(&[b"}"]))]),
    );
    add(
        "something before the archive",
        [b"#!/bin/sh\n".to_vec(), stored(&[b"}"])].concat(),
    );
    add(
        "something behind the archive",
        [stored(&[b"}"]), vec![0; 100]].concat(),
    );
    add("half an archive", stored(&[b"}"])[..40].to_vec());
    let old = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.";
    add(
        "an older checkpoint of lists",
        [&old[..], b"\x80\x02", &b"]".repeat(10 << 20)].concat(),
    );
    let list = [b"](".as_slice(), &b"N".repeat(1_900_000), b"e."].concat();
    let lists = [b"\x80\x02".as_slice(), &list].concat().repeat(3);
    add(
        "an older checkpoint of three long lists",
        [&old[..], &lists].concat(),
    );
    let strings = [
        b"\x80\x02](".to_vec(),
        text(&"a".repeat(50)).repeat(200_000),
        b"e.".to_vec(),
    ]
    .concat();
    add(
        "an older checkpoint of many texts",
        [&old[..], &strings.repeat(3)].concat(),
    );
    all
}

pub(super) fn cases(base: &Base) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, bytes) in files() {
        let bytes = std::sync::Arc::new(bytes);
        for (command, file) in [
            (
                "eval zoo import m.pth --dataset synthetic --arch preactresnet18 --threads 1 --out out",
                "m.pth",
            ),
            (
                "eval zoo import record --dataset synthetic --threads 1 --out out",
                "record/attack_result.pt",
            ),
            ("eval zoo scan m.pt", "m.pt"),
        ] {
            let bytes = bytes.clone();
            let case = Case::new(
                "checkpoints of PyTorch",
                format!("{name}: {command}"),
                command,
                move |folder: &Path| {
                    put(&folder.join(file), &*bytes);
                },
            );
            cases.push(if command.contains("scan") {
                case.harmless()
            } else {
                case
            });
        }
    }
    let good = fs_err::read(base.inputs.join("record/e/attack_result.pt")).expect("a record");
    for cut in [1, 2, 3, 5, 10, 100] {
        let bytes = good[..good.len() - good.len() / cut].to_vec();
        let command = "eval zoo import record --dataset synthetic --threads 1 --out out";
        cases.push(Case::new(
            "checkpoints of PyTorch",
            format!("a record without 1/{cut}"),
            command,
            move |folder: &Path| {
                put(&folder.join("record/attack_result.pt"), &bytes);
            },
        ));
    }
    cases
}
