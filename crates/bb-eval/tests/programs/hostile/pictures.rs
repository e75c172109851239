//! Pictures and arrays that say they are larger than they are, or that unpack to more than they should.

use std::io::Write as _;
use std::path::Path;

use super::{Base, Case, copy, put};
use crate::inputs::SMALL;

/// A chunk of a PNG file, with its checksum.
fn chunk(kind: [u8; 4], content: &[u8]) -> Vec<u8> {
    let mut crc = flate2::Crc::new();
    crc.update(&kind);
    crc.update(content);
    let len = (content.len() as u32).to_be_bytes();
    [&len[..], &kind, content, &crc.sum().to_be_bytes()].concat()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    let written = writer.write_all(bytes).and_then(|()| writer.finish());
    written.expect("memory")
}

/// A PNG file of RGB with this header and these chunks between it and its end.
pub(super) fn png(width: u32, height: u32, chunks: &[Vec<u8>]) -> Vec<u8> {
    png_of(width, height, [8, 2, 0, 0, 0], chunks)
}

fn png_of(width: u32, height: u32, rest: [u8; 5], chunks: &[Vec<u8>]) -> Vec<u8> {
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &rest].concat();
    let head = [b"\x89PNG\r\n\x1a\n".to_vec(), chunk(*b"IHDR", &header)].concat();
    [head, chunks.concat(), chunk(*b"IEND", b"")].concat()
}

/// A grey picture of that size, in as few bytes as zlib needs.
pub(super) fn grey(width: u32, height: u32) -> Vec<u8> {
    let row = [vec![0], vec![64; 3 * width as usize]].concat();
    png(
        width,
        height,
        &[chunk(*b"IDAT", &zlib(&row.repeat(height as usize)))],
    )
}

/// A JPEG file that says this size and has next to nothing.
fn jpeg(width: u16, height: u16, components: u8, marker: u8) -> Vec<u8> {
    let mut bytes = b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0".to_vec();
    bytes.extend_from_slice(&[0xff, 0xdb, 0, 67, 0]);
    bytes.extend_from_slice(&[1; 64]);
    let len = 8 + 3 * u16::from(components);
    bytes.extend_from_slice(&[0xff, marker]);
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.push(8);
    bytes.extend_from_slice(&height.to_be_bytes());
    bytes.extend_from_slice(&width.to_be_bytes());
    bytes.push(components);
    for id in 1..=components {
        bytes.extend_from_slice(&[id, 0x11, 0]);
    }
    bytes.extend_from_slice(&[0xff, 0xda, 0, 8, 1, 1, 0, 0, 63, 0, 0, 0xff, 0xd9]);
    bytes
}

fn bmp(width: i32, height: i32) -> Vec<u8> {
    let mut bytes = b"BM\x3a\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
    bytes.extend_from_slice(&width.to_le_bytes());
    bytes.extend_from_slice(&height.to_le_bytes());
    bytes.extend_from_slice(b"\x01\0\x18\0\0\0\0\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0abc\0");
    bytes
}

/// Pictures, and the ending of their names.
fn pictures() -> Vec<(String, &'static str, Vec<u8>)> {
    let idat = |size: usize| chunk(*b"IDAT", &zlib(&vec![0; size]));
    let mut all: Vec<(String, &str, Vec<u8>)> = Vec::new();
    let mut add = |name: &str, ending, bytes| all.push((name.to_owned(), ending, bytes));
    for (name, width, height) in [
        ("2^31 wide", 1 << 31, 1),
        ("2^31 - 1 high", 1, (1 << 31) - 1),
        ("65535 square", 65535, 65535),
        ("8192 square", 8192, 8192),
        ("nothing wide", 0, 32),
        ("one wide and 2^24 high", 1, 1 << 24),
    ] {
        add(name, "png", png(width, height, &[idat(1000)]));
    }
    add(
        "300 MiB of zeros in 32 x 32",
        "png",
        png(32, 32, &[idat(300 << 20)]),
    );
    add("4096 square that is there", "png", grey(4096, 4096));
    add("no data", "png", png(32, 32, &[]));
    add("half of the data", "png", png(32, 32, &[idat(1500)]));
    let much = zlib(&vec![b'a'; 300 << 20]);
    let text = [b"Comment\0\0".to_vec(), much.clone()].concat();
    add(
        "text of 300 MiB",
        "png",
        png(32, 32, &[chunk(*b"zTXt", &text), idat(97 * 32)]),
    );
    let text = [b"Comment\0\x01\0\0\0".to_vec(), much.clone()].concat();
    add(
        "international text of 300 MiB",
        "png",
        png(32, 32, &[chunk(*b"iTXt", &text), idat(97 * 32)]),
    );
    let profile = [b"icc\0\0".to_vec(), much].concat();
    add(
        "colours of 300 MiB",
        "png",
        png(32, 32, &[chunk(*b"iCCP", &profile), idat(97 * 32)]),
    );
    let crumbs = vec![chunk(*b"tEXt", b"a\0b"); 100_000];
    add(
        "100,000 texts",
        "png",
        png(32, 32, &[crumbs.concat(), idat(97 * 32)]),
    );
    add(
        "100,000 empty pieces of data",
        "png",
        png(
            32,
            32,
            &[chunk(*b"IDAT", b"").repeat(100_000), idat(97 * 32)],
        ),
    );
    add("a chunk of 2^31 bytes", "png", {
        let mut bytes = png(32, 32, &[idat(97 * 32)]);
        bytes[33..37].copy_from_slice(&[0x80, 0, 0, 0]);
        bytes
    });
    add(
        "16 bits, interlaced, 60000 wide",
        "png",
        png_of(60000, 2, [16, 6, 0, 0, 1], &[idat(1000)]),
    );
    for (marker, name) in [(0xc0, "plain"), (0xc2, "progressive")] {
        add(
            &format!("65535 square, {name}"),
            "jpg",
            jpeg(65535, 65535, 3, marker),
        );
        add(&format!("no rows, {name}"), "jpg", jpeg(32, 0, 3, marker));
        add(
            &format!("255 components, {name}"),
            "jpg",
            jpeg(32, 32, 255, marker),
        );
    }
    for (width, height) in [
        (i32::MAX, i32::MAX),
        (i32::MIN, i32::MIN),
        (65535, -65535),
        (0, 0),
    ] {
        add(&format!("{width} x {height}"), "bmp", bmp(width, height));
    }
    for head in [
        "P6 99999 99999 255 ",
        "P3 99999 99999 255 1",
        "P6 99999999999999999999 1 255 ",
        "P6 1 1 99999 a",
        "P5 0 0 255 ",
    ] {
        add(head, "ppm", head.as_bytes().to_vec());
    }
    add(
        "comments without end",
        "ppm",
        [b"P6\n".to_vec(), b"#\n".repeat(1 << 20)].concat(),
    );
    add(
        "digits without end",
        "ppm",
        [b"P6 ".to_vec(), b"1".repeat(1 << 20)].concat(),
    );
    all
}

/// Arrays of NumPy.
fn arrays() -> Vec<(String, Vec<u8>)> {
    let array = |header: &str, data: usize| {
        let len = (header.len() as u16).to_le_bytes();
        [
            &b"\x93NUMPY\x01\0"[..],
            &len,
            header.as_bytes(),
            &vec![0; data],
        ]
        .concat()
    };
    let dict = |kind: &str, shape: &str| {
        format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n")
    };
    let mut all = Vec::new();
    for shape in [
        "(1000000000000,)",
        "(18446744073709551615, 2)",
        "(4294967296, 4294967296, 3)",
        "(99999999999999999999999,)",
        "(-1, 32, 3)",
        "(0, 0, 0)",
        "(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)",
        "(32, 32, 3",
        "()",
    ] {
        all.push((format!("shape {shape}"), array(&dict("<f4", shape), 3072)));
    }
    for kind in [
        "|O",
        "<f2",
        "<c16",
        "|S1000000000",
        "<U999999999",
        "|V8",
        "[('a', '<f4')]",
        "",
    ] {
        all.push((
            format!("type {kind}"),
            array(&dict(kind, "(32, 32, 3)"), 24576),
        ));
    }
    let deep = format!(
        "{{'descr': '<f4', 'fortran_order': False, 'shape': {}",
        "(".repeat(60_000)
    );
    all.push(("brackets 60,000 deep".to_owned(), array(&deep, 0)));
    all.push((
        "a header of 4 GiB".to_owned(),
        b"\x93NUMPY\x02\0\xff\xff\xff\xff{".to_vec(),
    ));
    let mut long = b"\x93NUMPY\x02\0".to_vec();
    long.extend_from_slice(&(60u32 << 20).to_le_bytes());
    long.resize(60 << 20, b' ');
    all.push(("a header of 60 MiB of spaces".to_owned(), long));
    all.push((
        "an unknown format".to_owned(),
        b"\x93NUMPY\x09\0\x01\0{".to_vec(),
    ));
    let nan = [
        array(&dict("<f8", "(32, 32, 3)"), 0),
        f64::NAN.to_le_bytes().repeat(3072),
    ]
    .concat();
    all.push(("no number".to_owned(), nan));
    all
}

pub(super) fn cases(base: &Base) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, ending, bytes) in pictures() {
        let bytes = std::sync::Arc::new(bytes);
        let here = bytes.clone();
        let of_folder = "attack badnets --dataset folder --data images --width 1 --threads 1 -q --set train.batch_size=8 --out out";
        let inputs = base.inputs.clone();
        let case = Case::new(
            "pictures of a dataset",
            name.clone(),
            of_folder,
            move |folder: &Path| {
                copy(&inputs.join("images"), &folder.join("images"));
                put(&folder.join(format!("images/train/b/9.{ending}")), &*here);
            },
        );
        cases.push(if is_fine(&name) {
            case.harmless()
        } else {
            case
        });
        let here = bytes.clone();
        let trigger = format!(
            "attack blended {SMALL} --set train.epochs=1 --out out --set trigger.file=\"t.{ending}\""
        );
        let case = Case::new(
            "pictures of a trigger",
            name.clone(),
            &trigger,
            move |folder: &Path| {
                put(&folder.join(format!("t.{ending}")), &*here);
            },
        );
        cases.push(if is_fine(&name) {
            case.harmless()
        } else {
            case
        });
        if ending == "png" || ending == "jpg" {
            let inputs = base.inputs.clone();
            let import = "eval zoo import record --dataset synthetic --threads 1 --out out";
            let case = Case::new(
                "pictures of a record",
                name.clone(),
                import,
                move |folder: &Path| {
                    copy(&inputs.join("record/e"), &folder.join("record"));
                    put(&first_picture(&folder.join("record")), &*bytes);
                },
            );
            cases.push(if is_fine(&name) {
                case.harmless()
            } else {
                case
            });
        }
    }
    for (name, bytes) in arrays() {
        for (method, set) in [
            ("badnets", "--set trigger.file=\"t.npy\""),
            (
                "lf",
                "--set trigger.source=\"file\" --set trigger.file=\"t.npy\"",
            ),
            (
                "ssba",
                "--set trigger.source=\"files\" --set trigger.train_file=\"t.npy\" --set trigger.test_file=\"t.npy\"",
            ),
        ] {
            let bytes = bytes.clone();
            let command = format!("attack {method} {SMALL} --set train.epochs=1 {set} --out out");
            cases.push(Case::new(
                "arrays of NumPy",
                format!("{name}, {method}"),
                &command,
                move |folder| {
                    put(&folder.join("t.npy"), &bytes);
                },
            ));
        }
    }
    cases
}

/// Too much of what no picture needs; leaving it unread is as good as refusing it.
fn is_fine(name: &str) -> bool {
    ["text", "colours", "piece", "4096", "zeros"]
        .iter()
        .any(|word| name.contains(word))
}

/// A picture of a record.
fn first_picture(record: &Path) -> std::path::PathBuf {
    let mut left = vec![record.to_owned()];
    while let Some(folder) = left.pop() {
        let mut paths: Vec<_> = fs_err::read_dir(folder)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        paths.sort();
        for path in paths {
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|ending| ending == "png") {
                return path;
            }
        }
    }
    panic!("a record without pictures")
}
