//! Reading images and labels from Parquet files laid out as on the Hugging Face hub, or nearly so.
//!
//! The column readers are used directly: going through records or Arrow would copy every image once more.
//! Rows are read in batches, and each batch is decoded on all threads.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use parquet::basic::{ConvertedType, Encoding, Type};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;
use rayon::prelude::*;

use super::budget::{self, Budget};
use super::decode::Tally;
use super::images::{CHANNELS, Images, Split};
use super::pages::{self, Checked};
use super::{DataError, DatasetSpec, Decoded, Facts, classes, decode};
use crate::files::{self, Links};
use crate::json;

/// Rows decoded at a time: enough for all threads, little memory.
const BATCH: usize = 2048;
/// Names of the image column, image files as bytes or a `struct<bytes, path>` with them.
const IMAGE: [&str; 5] = ["img", "image", "images", "image_bytes", "bytes"];
/// Names of the label column, the finest first: CIFAR-100 has coarse labels too.
const LABEL: [&str; 6] = [
    "fine_label",
    "fine_labels",
    "label",
    "labels",
    "target",
    "class",
];
/// Most classes of a dataset whose labels alone tell how many there are.
const MOST_CLASSES: usize = 100_000;
/// Bytes that a row counts at least, whatever is in it.
const LEAST_ROW: u64 = 1 << 10;
/// Most values in the description that the hub's tools leave in a file, of which each class is one.
const MOST_FACTS: usize = 200_000;

/// Reads all rows of `files`, one after the other, or the first `limit`.
pub(super) fn read(
    files: &[PathBuf],
    spec: &DatasetSpec,
    limit: Option<usize>,
) -> Result<Decoded, DataError> {
    let mut sink = Sink {
        spec,
        limit: limit.unwrap_or(usize::MAX),
        pixels: Vec::new(),
        labels: Vec::new(),
        tally: Tally::default(),
        room: Budget::default(),
    };
    let mut named: Option<(&Path, Vec<String>)> = None;
    for path in files {
        let names = DataError::guard(path, || {
            let shard = Shard::open(path)?;
            check_class_names(path, shard.names.as_deref(), spec)?;
            shard.read_into(&mut sink)?;
            Ok(shard.names)
        })?;
        match (&named, names) {
            (None, Some(names)) => named = Some((path, names)),
            (Some((first, expected)), Some(names)) => {
                classes::check_same((first, expected), (path, &names))?;
            }
            (_, None) => {}
        }
    }
    let images = Images::new(sink.labels.len(), spec.height, spec.width, sink.pixels)?;
    Ok(Decoded {
        split: Split {
            images,
            labels: sink.labels.into(),
        },
        facts: Facts {
            class_names: named.map(|(_, names)| names),
            ..Facts::counted(&sink.tally)
        },
    })
}

/// What has been read so far.
struct Sink<'a> {
    spec: &'a DatasetSpec,
    limit: usize,
    pixels: Vec<u8>,
    labels: Vec<u32>,
    tally: Tally,
    /// Bytes of `pixels`.
    room: Budget,
}

impl Sink<'_> {
    fn wanted(&self, batch: usize) -> usize {
        batch.min(self.limit - self.labels.len())
    }

    /// Checks and decodes one batch whose first row is `row` of the file.
    fn push(
        &mut self,
        path: &Path,
        row: usize,
        images: &[ByteArray],
        labels: &[i64],
    ) -> Result<(), DataError> {
        let DatasetSpec {
            classes,
            height,
            width,
            ..
        } = *self.spec;
        for (i, &label) in labels.iter().enumerate() {
            let known = u32::try_from(label)
                .ok()
                .filter(|l| (*l as usize) < classes);
            self.labels.push(known.ok_or_else(|| DataError::Label {
                path: path.to_path_buf(),
                row: row + i,
                found: label,
                classes,
            })?);
        }
        let image_bytes = height * width * CHANNELS;
        let (start, tally) = (self.pixels.len(), &self.tally);
        self.pixels.resize(start + images.len() * image_bytes, 0);
        let fault = self.pixels[start..]
            .par_chunks_exact_mut(image_bytes)
            .zip(images)
            .enumerate()
            .map(|(i, (out, bytes))| {
                decode::rgb_into(bytes.data(), height, width, out, tally)
                    .map_err(|source| (i, source))
            })
            .find_map_first(Result::err);
        match fault {
            None => Ok(()),
            Some((i, source)) => Err(DataError::ImageRow {
                path: path.to_path_buf(),
                row: row + i,
                source,
            }),
        }
    }
}

/// One open file whose schema has been checked.
struct Shard<'a> {
    path: &'a Path,
    /// What `reader` reads.
    file: std::fs::File,
    length: u64,
    reader: SerializedFileReader<std::fs::File>,
    /// Bytes that came of pages.
    unpacked: Budget,
    image: Column,
    label: Column,
    /// Names of the classes, where the file has them.
    names: Option<Vec<String>>,
}

/// A leaf column.
struct Column {
    index: usize,
    name: String,
    /// Definition level of a value that is there.
    full: i16,
}

impl<'a> Shard<'a> {
    fn open(path: &'a Path) -> Result<Self, DataError> {
        let opened = files::open(path, Links::Follow).map_err(DataError::io(path))?;
        let (file, _) = opened.into_parts();
        refuse_pointer(path, &file)?;
        let length = file.metadata().map_err(DataError::io(path))?.len();
        pages::check_contents(&file, length).map_err(unreadable(path))?;
        let copy = file.try_clone().map_err(DataError::io(path))?;
        let reader = SerializedFileReader::new(copy).map_err(unreadable(path))?;
        check_places(reader.metadata(), length).map_err(unreadable(path))?;
        let facts = reader.metadata().file_metadata();
        let names = class_names(facts.key_value_metadata());
        let columns = facts.schema_descr().columns();
        let found = || columns.iter().map(|c| c.path().string()).collect();
        let image = IMAGE.iter().find_map(|name| leaf(columns, name));
        let image = image.ok_or_else(|| DataError::MissingColumn {
            path: path.to_path_buf(),
            expected: "`img`, `image`, `images`, `image_bytes` or `bytes`",
            found: found(),
        })?;
        let label = LABEL.iter().find_map(|name| leaf(columns, name));
        let label = label.ok_or_else(|| DataError::MissingColumn {
            path: path.to_path_buf(),
            expected: "`label`, `labels`, `fine_label`, `fine_labels`, `target` or `class`",
            found: found(),
        })?;

        let is_image = |c: &ColumnDescriptor| {
            c.path().parts().len() <= 2 && c.physical_type() == Type::BYTE_ARRAY && !is_text(c)
        };
        let is_label = |c: &ColumnDescriptor| {
            c.path().parts().len() == 1 && matches!(c.physical_type(), Type::INT32 | Type::INT64)
        };
        Ok(Self {
            image: typed(
                path,
                columns,
                image,
                "image files as bytes, or a struct with them as `bytes`",
                is_image,
            )?,
            label: typed(path, columns, label, "a column of integers", is_label)?,
            names,
            path,
            file,
            length,
            reader,
            unpacked: Budget::default(),
        })
    }

    fn read_into(&self, sink: &mut Sink<'_>) -> Result<(), DataError> {
        self.make_room(sink)?;
        let mut row = 0;
        for i in 0..self.reader.num_row_groups() {
            if sink.wanted(BATCH) == 0 {
                return Ok(());
            }
            let group = self
                .reader
                .get_row_group(i)
                .map_err(unreadable(self.path))?;
            self.read_group(&*group, &mut row, sink)?;
        }
        Ok(())
    }

    /// Takes memory for the announced rows, unless their images are out of proportion to the files.
    fn make_room(&self, sink: &mut Sink<'_>) -> Result<(), DataError> {
        let groups = self.reader.metadata().row_groups().iter();
        let rows = groups.fold(0, |rows: u64, group| {
            rows.saturating_add(group.num_rows().unsigned_abs())
        });
        let rows = rows.min((sink.limit - sink.labels.len()) as u64);
        sink.tally.files(self.length);
        sink.room.add(self.length);
        let image = (sink.spec.height * sink.spec.width * CHANNELS) as u64;
        let bytes = rows.saturating_mul(image);
        sink.room
            .spend(bytes)
            .map_err(|most| DataError::Proportion {
                path: self.path.to_path_buf(),
                found: rows,
                most: most / image.max(1),
                h: sink.spec.height,
                w: sink.spec.width,
            })?;
        // If there is no memory for them, the reading will say so.
        let _ = sink.pixels.try_reserve(bytes as usize);
        Ok(())
    }

    fn read_group(
        &self,
        group: &dyn RowGroupReader,
        row: &mut usize,
        sink: &mut Sink<'_>,
    ) -> Result<(), DataError> {
        let unreadable = || unreadable(self.path);
        let announced = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
        let end = *row + announced;
        let (mut images, mut labels) = (self.images(group)?, self.labels(group)?);
        let (mut bytes, mut numbers, mut levels) = (Vec::new(), Vec::new(), Vec::new());
        let batch = if self.is_single(group) { 1 } else { BATCH };
        while sink.wanted(batch) > 0 {
            let wanted = sink.wanted(batch);
            let found = next(&mut images, wanted, &mut bytes, &mut levels).map_err(unreadable())?;
            self.refuse_null(&self.image, *row, &levels)?;
            let labelled = labels
                .next(wanted, &mut numbers, &mut levels)
                .map_err(unreadable())?;
            self.refuse_null(&self.label, *row, &levels)?;
            if found != labelled {
                let (column, found) = if found < labelled {
                    (&self.image, found)
                } else {
                    (&self.label, labelled)
                };
                return Err(self.ends(column, *row + found, end));
            }
            if found == 0 {
                break;
            }
            sink.push(self.path, *row, &bytes, &numbers)?;
            *row += found;
        }
        if sink.wanted(batch) > 0 && *row != end {
            return Err(self.ends(&self.image, *row, end));
        }
        Ok(())
    }

    fn images(
        &self,
        group: &dyn RowGroupReader,
    ) -> Result<ColumnReaderImpl<ByteArrayType>, DataError> {
        match self.column(group, &self.image, self.is_single(group))? {
            ColumnReader::ByteArrayColumnReader(images) => Ok(images),
            _ => unreachable!("the schema says that the image column has the type BYTE_ARRAY"),
        }
    }

    fn labels(&self, group: &dyn RowGroupReader) -> Result<Labels, DataError> {
        match self.column(group, &self.label, false)? {
            ColumnReader::Int32ColumnReader(reader) => Ok(Labels::Int32(reader, Vec::new())),
            ColumnReader::Int64ColumnReader(reader) => Ok(Labels::Int64(reader)),
            _ => unreachable!("the schema says that the label column has an integer type"),
        }
    }

    /// Whether images are read one by one, since each may be made of the one before and be as long as all together.
    fn is_single(&self, group: &dyn RowGroupReader) -> bool {
        let mut encodings = group.metadata().column(self.image.index).encodings();
        encodings.any(|encoding| encoding == Encoding::DELTA_BYTE_ARRAY)
    }

    /// A column whose pages are checked before they are read.
    fn column(
        &self,
        group: &dyn RowGroupReader,
        column: &Column,
        is_single: bool,
    ) -> Result<ColumnReader, DataError> {
        let facts = group.metadata().column(column.index);
        let rows = group.metadata().num_rows();
        pages::check_pages(&self.file, facts, rows, &self.unpacked)
            .map_err(unreadable(self.path))?;
        let inner = group.get_column_page_reader(column.index);
        let pages = Checked {
            inner: inner.map_err(unreadable(self.path))?,
            has_levels: column.full > 0,
            is_single,
        };
        Ok(get_column_reader(facts.column_descr_ptr(), Box::new(pages)))
    }

    /// Checks the definition levels of a batch, of which a column that cannot hold nulls has none.
    fn refuse_null(&self, column: &Column, row: usize, levels: &[i16]) -> Result<(), DataError> {
        match levels.iter().position(|level| *level < column.full) {
            None => Ok(()),
            Some(at) => Err(DataError::Null {
                path: self.path.to_path_buf(),
                column: column.name.clone(),
                row: row + at,
            }),
        }
    }

    fn ends(&self, column: &Column, found: usize, expected: usize) -> DataError {
        DataError::RowCount {
            path: self.path.to_path_buf(),
            column: column.name.clone(),
            expected,
            found,
        }
    }
}

enum Labels {
    Int32(ColumnReaderImpl<Int32Type>, Vec<i32>),
    Int64(ColumnReaderImpl<Int64Type>),
}

impl Labels {
    fn next(
        &mut self,
        wanted: usize,
        values: &mut Vec<i64>,
        levels: &mut Vec<i16>,
    ) -> Result<usize, ParquetError> {
        match self {
            Self::Int64(reader) => next(reader, wanted, values, levels),
            Self::Int32(reader, narrow) => {
                let rows = next(reader, wanted, narrow, levels)?;
                values.clear();
                values.extend(narrow.iter().map(|v| i64::from(*v)));
                Ok(rows)
            }
        }
    }
}

/// Replaces `values` by those of the next rows, at most `wanted`, and returns how many rows there were.
fn next<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    wanted: usize,
    values: &mut Vec<T::T>,
    levels: &mut Vec<i16>,
) -> Result<usize, ParquetError> {
    values.clear();
    levels.clear();
    let (rows, _, _) = reader.read_records(wanted, Some(levels), None, values)?;
    Ok(rows)
}

/// The leaf `name` itself, or, of a struct `name`, its field `bytes` or else its first field.
fn leaf(columns: &[parquet::schema::types::ColumnDescPtr], name: &str) -> Option<usize> {
    let mut of_name = columns
        .iter()
        .enumerate()
        .filter(|(_, c)| c.path().parts().first().is_some_and(|part| part == name));
    let bytes = of_name
        .clone()
        .find(|(_, c)| c.path().parts().get(1).is_some_and(|part| part == "bytes"));
    bytes.or_else(|| of_name.next()).map(|(i, _)| i)
}

fn typed(
    path: &Path,
    columns: &[parquet::schema::types::ColumnDescPtr],
    index: usize,
    expected: &'static str,
    fits: impl Fn(&ColumnDescriptor) -> bool,
) -> Result<Column, DataError> {
    let column = &columns[index];
    let name = column.path().string();
    if column.max_rep_level() == 0 && fits(column) {
        return Ok(Column {
            index,
            name,
            full: column.max_def_level(),
        });
    }
    let list = if column.max_rep_level() > 0 {
        "a list of "
    } else {
        ""
    };
    Err(DataError::ColumnType {
        path: path.to_path_buf(),
        column: name,
        expected,
        found: if is_text(column) {
            format!("{list}text")
        } else {
            format!("{list}{}", column.physical_type())
        },
    })
}

/// Whether bytes are text, such as the path of an image or the name of a class.
fn is_text(column: &ColumnDescriptor) -> bool {
    column.converted_type() == ConvertedType::UTF8
}

/// What the first file of a dataset tells of all of it.
pub(super) struct First {
    /// The names of the classes in label order, where the file has them.
    pub(super) class_names: Option<Vec<String>>,
    /// Height and width of the first image.
    pub(super) size: (usize, usize),
}

/// Looks at the description and the first image of a file.
pub(super) fn first(path: &Path) -> Result<First, DataError> {
    DataError::guard(path, || {
        let shard = Shard::open(path)?;
        let (mut bytes, mut levels) = (Vec::new(), Vec::new());
        for i in 0..shard.reader.num_row_groups() {
            let group = shard.reader.get_row_group(i).map_err(unreadable(path))?;
            let mut images = shard.images(&*group)?;
            next(&mut images, 1, &mut bytes, &mut levels).map_err(unreadable(path))?;
            shard.refuse_null(&shard.image, 0, &levels)?;
            if let Some(image) = bytes.first() {
                let unusable = |source| DataError::ImageRow {
                    path: path.to_path_buf(),
                    row: 0,
                    source,
                };
                return Ok(First {
                    size: decode::size(image.data()).map_err(unusable)?,
                    class_names: shard.names,
                });
            }
        }
        Err(DataError::EmptyTable {
            path: path.to_path_buf(),
        })
    })
}

/// The number of classes that the labels of all files need.
pub(super) fn classes<'a>(files: impl Iterator<Item = &'a PathBuf>) -> Result<usize, DataError> {
    let mut classes = 0;
    for path in files {
        DataError::guard(path, || {
            let shard = Shard::open(path)?;
            let (mut numbers, mut levels, mut row) = (Vec::new(), Vec::new(), 0);
            for i in 0..shard.reader.num_row_groups() {
                let group = shard.reader.get_row_group(i).map_err(unreadable(path))?;
                let mut labels = shard.labels(&*group)?;
                while labels
                    .next(BATCH, &mut numbers, &mut levels)
                    .map_err(unreadable(path))?
                    > 0
                {
                    shard.refuse_null(&shard.label, row, &levels)?;
                    for &label in &numbers {
                        let known = usize::try_from(label).ok().filter(|l| *l < MOST_CLASSES);
                        let known = known.ok_or_else(|| DataError::Label {
                            path: path.clone(),
                            row,
                            found: label,
                            classes: MOST_CLASSES,
                        })?;
                        classes = classes.max(known + 1);
                        row += 1;
                    }
                }
            }
            Ok(())
        })?;
    }
    Ok(classes)
}

/// The names of the classes in the description that the hub's tools leave in a file.
fn class_names(metadata: Option<&Vec<parquet::file::metadata::KeyValue>>) -> Option<Vec<String>> {
    let text = metadata?
        .iter()
        .find(|entry| entry.key == "huggingface")
        .and_then(|entry| entry.value.as_deref())?;
    // The description is optional and its form is not ours: what is not understood is not used.
    let description: serde_json::Value = json::from_slice(text.as_bytes(), MOST_FACTS).ok()?;
    let features = &description["info"]["features"];
    let names = LABEL
        .iter()
        .find_map(|label| features[label]["names"].as_array())?;
    names
        .iter()
        .map(|name| name.as_str().map(str::to_owned))
        .collect()
}

/// Refuses files whose own description names other classes, so that no dataset is taken for another.
fn check_class_names(
    path: &Path,
    names: Option<&[String]>,
    spec: &DatasetSpec,
) -> Result<(), DataError> {
    let Some(names) = names else {
        return Ok(());
    };
    classes::check_count(path, names, spec.classes)?;
    classes::check_order(spec.id, path, names)
}

/// Checks that the table of contents points into the file; the reader takes that for granted.
fn check_places(contents: &ParquetMetaData, length: u64) -> Result<(), ParquetError> {
    let implausible = |what: &str, found: i64| {
        ParquetError::General(format!("the table of contents has a {what} of {found}"))
    };
    let mut rows = 0_u64;
    for group in contents.row_groups() {
        rows = rows.saturating_add(group.num_rows().unsigned_abs());
        let most = budget::most(length) / LEAST_ROW;
        if group.num_rows() < 0 || rows > most {
            return Err(ParquetError::General(format!(
                "the table of contents has a number of rows of {}, expected at most {most} in {length} bytes",
                group.num_rows()
            )));
        }
        for column in group.columns() {
            let start = column
                .dictionary_page_offset()
                .unwrap_or(column.data_page_offset());
            let size = column.compressed_size();
            for (what, found) in [
                ("page offset", start),
                ("page offset", column.data_page_offset()),
                ("compressed size", size),
                ("number of values", column.num_values()),
            ] {
                if found < 0 {
                    return Err(implausible(what, found));
                }
            }
            let end = start.checked_add(size);
            if end.is_none_or(|end| end.unsigned_abs() > length) {
                return Err(implausible("compressed size", size));
            }
        }
    }
    Ok(())
}

fn refuse_pointer(path: &Path, file: &std::fs::File) -> Result<(), DataError> {
    const MARK: &[u8] = b"version https://git-lfs";
    let mut head = [0; MARK.len()];
    let read = file.read_at(&mut head, 0).map_err(DataError::io(path))?;
    if head[..read] == *MARK {
        return Err(DataError::LfsPointer {
            path: path.to_path_buf(),
        });
    }
    Ok(())
}

fn unreadable(path: &Path) -> impl FnOnce(ParquetError) -> DataError {
    let path = path.to_path_buf();
    move |source| DataError::Parquet { path, source }
}
