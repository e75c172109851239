//! Datasets: the first byte of an input says which file of which layout the rest is; the other files are good.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use bb_attack::picture::Picture;
use bb_core::data::{OpenOptions, open};
use flate2::Compression;
use flate2::write::GzEncoder;
use parquet::column::writer::ColumnWriter;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

/// Layouts by their first byte.
const PARQUET: u8 = b'p';
const PARQUET_FOLDER: u8 = b'q';
const BATCH: u8 = b'b';
const FINE_BATCH: u8 = b'f';
const META: u8 = b'm';
const ARCHIVE: u8 = b'z';
const TAR: u8 = b't';
const BINARY: u8 = b'n';
const IMAGE: u8 = b'i';
const SIGNS: u8 = b's';
const KAGGLE: u8 = b'k';
const ANNOTATIONS: u8 = b'a';
const WORDS: u8 = b'w';
const TREE: u8 = b'd';

/// Files that are read, of every layout.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let archive = tar_of_batches();
    let ppm = b"P6\n2 1\n255\nabcdef".to_vec();
    let jpeg = include_bytes!("small.jpg").to_vec();
    let bmp: &[u8] = b"BM\x3a\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x01\0\0\0\x01\0\0\0\x01\0\x18\0\0\0\0\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0abc\0";
    [
        (PARQUET, table(&[3, 0])),
        (PARQUET_FOLDER, table(&[3, 0])),
        (BATCH, batch("labels")),
        (FINE_BATCH, batch("fine_labels")),
        (META, meta()),
        (ARCHIVE, gzip(&archive)),
        (TAR, archive),
        (IMAGE, picture()),
        (IMAGE, ppm),
        (IMAGE, b"P2 2 1 7 1 7".to_vec()),
        (IMAGE, jpeg),
        (IMAGE, bmp.to_vec()),
        (
            SIGNS,
            b"Filename;Width;Height;ClassId\n0.ppm;4;4;7\n0.ppm;4;4;42\n".to_vec(),
        ),
        (
            KAGGLE,
            b"Width,ClassId,Path\r\n4,7,Test/0.png\r\n4,\"1\",Test/0.png\r\n".to_vec(),
        ),
        (
            ANNOTATIONS,
            b"0.JPEG\tn01443537\t0\t0\t62\t62\n0.JPEG\tn01629819\t1\t1\t2\t2\n".to_vec(),
        ),
        (
            WORDS,
            b"n01443537\tgoldfish, Carassius auratus\nn01629819\tsalamander\n".to_vec(),
        ),
        (
            TREE,
            b"train/2/0.png\ntrain/10/0.png\ntest/2/a.png\nval/10/x/b.PNG\ntrain/2/notes.txt\n"
                .to_vec(),
        ),
    ]
    .into_iter()
    .map(|(kind, bytes)| [&[kind], &bytes[..]].concat())
    .collect()
}

/// Reads an input; true if it was accepted.
pub(crate) fn read(bytes: &[u8], folder: &Path) -> bool {
    let Some((&kind, bytes)) = bytes.split_first() else {
        return false;
    };
    let root = folder.join("dataset");
    let _ = fs_err::remove_dir_all(&root);
    fs_err::create_dir_all(&root).expect("a temporary folder that can be written");
    let put = |name: &str, bytes: &[u8]| put(&root, name, bytes);
    let picture = picture();
    let id = match kind {
        PARQUET | PARQUET_FOLDER => {
            put("train.parquet", bytes);
            put("test.parquet", &table(&[1]));
            if kind == PARQUET { "cifar10" } else { "folder" }
        }
        BATCH | META => {
            let good = batch("labels");
            for name in BATCHES {
                put(&format!("cifar-10-batches-py/{name}"), &good);
            }
            let name = if kind == BATCH {
                "data_batch_3"
            } else {
                "batches.meta"
            };
            put(&format!("cifar-10-batches-py/{name}"), bytes);
            "cifar10"
        }
        FINE_BATCH => {
            put("cifar-100-python/train", bytes);
            put("cifar-100-python/test", &batch("fine_labels"));
            "cifar100"
        }
        ARCHIVE => {
            put("cifar-10-python.tar.gz", bytes);
            "cifar10"
        }
        TAR => {
            put("cifar-10-python.tar.gz", &gzip(bytes));
            "cifar10"
        }
        BINARY => {
            put("data_batch_1.bin", bytes);
            "cifar10"
        }
        IMAGE => {
            put("train/a/0.png", bytes);
            put("train/b/0.png", &picture);
            put("test/b/0.png", bytes);
            "folder"
        }
        SIGNS => {
            put("Train/00007/0.ppm", &picture);
            put("Test/0.ppm", &picture);
            put("Test/GT-final_test.csv", bytes);
            "gtsrb"
        }
        KAGGLE => {
            put("Train/7/0.png", &picture);
            put("Test/0.png", &picture);
            put("Test.csv", bytes);
            "gtsrb"
        }
        ANNOTATIONS | WORDS => {
            for id in ["n01443537", "n01629819"] {
                put(&format!("train/{id}/images/0.JPEG"), &picture);
            }
            put("val/images/0.JPEG", &picture);
            put("val/val_annotations.txt", b"0.JPEG\tn01443537\n");
            let name = if kind == WORDS {
                "words.txt"
            } else {
                "val/val_annotations.txt"
            };
            put(name, bytes);
            "tiny"
        }
        TREE => {
            for line in bytes.split(|byte| *byte == b'\n').take(40) {
                plant(&root, line, &picture);
            }
            "folder"
        }
        _ => return false,
    };
    let opened = open(id, Some(&root), &OpenOptions::default());
    if let Ok(data) = &opened {
        let classes = data.spec.classes;
        assert_eq!(data.class_names.len(), classes);
        for split in [&data.train, &data.test] {
            assert_eq!(split.images.len(), split.labels.len());
            assert!(!split.is_empty() && split.labels.iter().all(|l| (*l as usize) < classes));
        }
    }
    if kind == TREE {
        // Other datasets look at the same folders in their own ways.
        for id in ["gtsrb", "tiny", "cifar100"] {
            let _ = open(id, Some(&root), &OpenOptions::default());
        }
    }
    opened.is_ok()
}

const BATCHES: [&str; 6] = [
    "data_batch_1",
    "data_batch_2",
    "data_batch_3",
    "data_batch_4",
    "data_batch_5",
    "test_batch",
];

fn put(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join(name);
    fs_err::create_dir_all(path.parent().expect("a file has a folder"))
        .and_then(|()| fs_err::write(&path, bytes))
        .expect("a temporary folder that can be written");
}

/// A picture under a name made of what is left of `line`, if the system takes that.
fn plant(root: &Path, line: &[u8], picture: &[u8]) {
    let text = String::from_utf8_lossy(line);
    let parts: Vec<&str> = text
        .split('/')
        .filter(|part| !matches!(*part, "" | "." | "..") && !part.contains('\0'))
        .take(6)
        .collect();
    let path = root.join(parts.join("/"));
    if let (true, Some(parent)) = (path != root, path.parent()) {
        let _ = fs_err::create_dir_all(parent).and_then(|()| fs_err::write(&path, picture));
    }
}

fn picture() -> Vec<u8> {
    Picture::new(4, 4, (0..48).collect()).to_png()
}

/// A Parquet file as on the hub, with the names of ten classes.
fn table(labels: &[i64]) -> Vec<u8> {
    let schema = "message m { optional group img { optional binary bytes; optional binary path (UTF8); } optional int64 label; }";
    let schema = Arc::new(parse_message_type(schema).expect("a schema"));
    let names = r#"{"info": {"features": {"label": {"names": ["0","1","2","3","4","5","6","7","8","9"]}}}}"#;
    let entry = KeyValue::new("huggingface".to_owned(), names.to_owned());
    let properties = WriterProperties::builder().set_key_value_metadata(Some(vec![entry]));
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties.build()))
        .expect("memory");
    let mut group = writer.next_row_group().expect("memory");
    let n = labels.len();
    while let Some(mut column) = group.next_column().expect("memory") {
        match column.untyped() {
            ColumnWriter::ByteArrayColumnWriter(column) => {
                let values = vec![picture().into(); n];
                column.write_batch(&values, Some(&vec![2; n]), None)
            }
            ColumnWriter::Int64ColumnWriter(column) => {
                column.write_batch(labels, Some(&vec![1; n]), None)
            }
            _ => unreachable!("the schema has these two types"),
        }
        .expect("memory");
        column.close().expect("memory");
    }
    group.close().expect("memory");
    writer.close().expect("memory");
    bytes
}

/// A batch of one image as Python 2 pickles it.
fn batch(field: &str) -> Vec<u8> {
    [
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\0\x85U\x01b\x87Rq\x05(K\x01K\x01M\0\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\0K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89T\0\x0c\0\0".as_slice(),
        &[7; 3072],
        b"tbU",
        &[field.len() as u8],
        field.as_bytes(),
        b"q\x08]q\x09K\x03aU\x09filenamesq\x0a]q\x0bU\x05a.pngaU\x0bbatch_labelq\x0cU\x05b 1/5u.",
    ]
    .concat()
}

/// `batches.meta`, with numbers for names.
fn meta() -> Vec<u8> {
    let names: Vec<u8> = (b'0'..=b'9').flat_map(|digit| [b'U', 1, digit]).collect();
    let head = b"\x80\x02}q\x01(U\x07num_visq\x02M\0\x0cU\x0blabel_namesq\x03]q\x04(";
    [&head[..], &names, b"eu."].concat()
}

fn tar_of_batches() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let batch = batch("labels");
    for name in BATCHES {
        let mut header = tar::Header::new_gnu();
        header.set_size(batch.len() as u64);
        header.set_mode(0o644);
        archive
            .append_data(
                &mut header,
                format!("cifar-10-batches-py/{name}"),
                &batch[..],
            )
            .expect("memory");
    }
    archive.into_inner().expect("memory")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes)
        .and_then(|()| gzip.finish())
        .expect("memory")
}
