//! Builders of small image and Parquet files.

use std::path::Path;
use std::sync::Arc;

use bb_core::data::{DataError, Dataset, OpenOptions, open};
use image::{ExtendedColorType, ImageEncoder};
use parquet::basic::Compression;
use parquet::column::writer::ColumnWriter;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

/// Pixels `[h, w, 3]` that differ between seeds and between places.
pub(crate) fn pixels(seed: usize, h: usize, w: usize) -> Vec<u8> {
    (0..h * w * 3)
        .map(|i| ((i * 31 + seed * 97 + i / 7) % 256) as u8)
        .collect()
}

pub(crate) fn png(pixels: &[u8], h: usize, w: usize) -> Vec<u8> {
    let mut out = Vec::new();
    image::codecs::png::PngEncoder::new(&mut out)
        .write_image(pixels, w as u32, h as u32, ExtendedColorType::Rgb8)
        .expect("a small image can be encoded");
    out
}

pub(crate) fn jpeg(pixels: &[u8], h: usize, w: usize) -> Vec<u8> {
    let mut out = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut out, 95)
        .write_image(pixels, w as u32, h as u32, ExtendedColorType::Rgb8)
        .expect("a small image can be encoded");
    out
}

/// The PNG file of [`pixels`] at 32x32.
pub(crate) fn picture(seed: usize) -> Vec<u8> {
    png(&pixels(seed, 32, 32), 32, 32)
}

/// One leaf column: its definition levels and its values.
pub(crate) enum Column {
    Bytes(Vec<i16>, Vec<Vec<u8>>),
    Int64(Vec<i16>, Vec<i64>),
    Int32(Vec<i16>, Vec<i32>),
    Double(Vec<i16>, Vec<f64>),
    /// A list column whose rows have one element each.
    List(Vec<i64>),
}

impl Column {
    /// Values that are all there, at definition level `level`.
    pub(crate) fn bytes(level: i16, values: Vec<Vec<u8>>) -> Self {
        Self::Bytes(vec![level; values.len()], values)
    }

    /// Values that are all there, at definition level 1.
    pub(crate) fn int64(values: &[i64]) -> Self {
        Self::Int64(vec![1; values.len()], values.to_vec())
    }
}

/// The schema of the hub's CIFAR-10, all columns nullable.
pub(crate) const HUB: &str = "message m { optional group img { optional binary bytes; optional binary path (UTF8); } optional int64 label; }";

/// Writes one file: leaf columns in the order of the schema, once per row group.
pub(crate) fn parquet(
    path: &Path,
    schema: &str,
    description: Option<&str>,
    groups: &[Vec<Column>],
) {
    fs_err::create_dir_all(path.parent().expect("a file has a folder")).expect("create");
    let schema = Arc::new(parse_message_type(schema).expect("a schema"));
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(
            parquet::basic::ZstdLevel::try_new(1).expect("a level"),
        ))
        .set_data_page_row_count_limit(5)
        .set_write_batch_size(2);
    if let Some(text) = description {
        let entry = KeyValue::new("huggingface".to_owned(), text.to_owned());
        properties = properties.set_key_value_metadata(Some(vec![entry]));
    }
    let file = fs_err::File::create(path).expect("create");
    let mut writer =
        SerializedFileWriter::new(file, schema, Arc::new(properties.build())).expect("a writer");
    for group in groups {
        let mut rows = writer.next_row_group().expect("a group");
        for column in group {
            let mut next = rows.next_column().expect("writes").expect("a column");
            match (next.untyped(), column) {
                (ColumnWriter::ByteArrayColumnWriter(w), Column::Bytes(levels, values)) => {
                    let values: Vec<_> = values.iter().map(|v| v.clone().into()).collect();
                    w.write_batch(&values, Some(levels), None)
                }
                (ColumnWriter::Int64ColumnWriter(w), Column::Int64(levels, values)) => {
                    w.write_batch(values, Some(levels), None)
                }
                (ColumnWriter::Int32ColumnWriter(w), Column::Int32(levels, values)) => {
                    w.write_batch(values, Some(levels), None)
                }
                (ColumnWriter::DoubleColumnWriter(w), Column::Double(levels, values)) => {
                    w.write_batch(values, Some(levels), None)
                }
                (ColumnWriter::Int64ColumnWriter(w), Column::List(values)) => {
                    let rows = values.len();
                    w.write_batch(values, Some(&vec![1; rows]), Some(&vec![0; rows]))
                }
                _ => panic!("the column does not fit the schema"),
            }
            .expect("writes");
            next.close().expect("closes");
        }
        rows.close().expect("closes");
    }
    writer.close().expect("closes");
}

/// Leaf columns of [`HUB`] for these images and labels.
pub(crate) fn hub_rows(images: Vec<Vec<u8>>, labels: &[i64]) -> Vec<Column> {
    let names = (0..images.len()).map(|i| format!("{i}.png").into_bytes());
    let names = Column::bytes(2, names.collect());
    vec![Column::bytes(2, images), names, Column::int64(labels)]
}

/// The numbers of pictures modulo ten.
pub(crate) fn labels(pictures: std::ops::Range<usize>) -> Vec<i64> {
    pictures.map(|i| i64::from((i % 10) as u8)).collect()
}

/// A file like the hub's CIFAR-10 with pictures `first..first + n`, labelled by their number modulo ten.
pub(crate) fn hub_file(path: &Path, first: usize, n: usize) {
    let images = (first..first + n).map(picture).collect();
    let labels = labels(first..first + n);
    parquet(path, HUB, None, &[hub_rows(images, &labels)]);
}

/// Writes a file below `root`.
pub(crate) fn put(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join(name);
    fs_err::create_dir_all(path.parent().expect("a file has a folder")).expect("create");
    fs_err::write(path, bytes).expect("write");
}

/// Opens without a cache.
pub(crate) fn plain(id: &str, root: &Path) -> Result<Dataset, DataError> {
    open(id, Some(root), &OpenOptions::default())
}

/// The message of an error and of its causes, with the root cut out of the paths.
pub(crate) fn message(error: &dyn std::error::Error, root: &Path) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text.replace(&format!("{}/", root.display()), "")
}
