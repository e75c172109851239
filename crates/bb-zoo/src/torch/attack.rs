//! BackdoorBench's `attack_result.pt`, and bare state dictionaries.
//!
//! The paths in it are never opened: of each only the last three parts are kept, `<folder>/<label>/<index>.png`, and
//! these must agree with the labels and the index beside it.

use super::file::{Checkpoint, TensorData, TorchError};
use super::pickle::{Array, Element, Object, Value, short};
use std::path::Path;

/// A named tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Its name in the file.
    pub name: String,
    /// Sizes.
    pub shape: Vec<usize>,
    /// Elements.
    pub data: TensorData,
}

/// What the checkpoint of an attack holds.
#[derive(Clone, Debug)]
pub struct AttackResult {
    /// BackdoorBench's name of the architecture.
    pub model_name: String,
    /// Number of classes.
    pub classes: usize,
    /// The network.
    pub state: Vec<NamedTensor>,
    /// Name of the dataset.
    pub dataset: String,
    /// Rows and columns of an image.
    pub image: (usize, usize),
    /// The poisoned training set; some attacks store none.
    pub train: Option<DatasetState>,
    /// The poisoned test set.
    pub test: DatasetState,
}

/// Which images of a dataset are poisoned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetState {
    /// Images of the whole dataset.
    pub images: usize,
    /// Indices that the set is made of, ascending.
    pub kept: Vec<usize>,
    /// The poisoned images, by ascending index.
    pub records: Vec<Record>,
}

/// One poisoned image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Index in the dataset.
    pub index: usize,
    /// Folder of its file, such as `bd_test_dataset`.
    pub folder: String,
    /// The attacked label.
    pub label: u32,
    /// The true label, which is also the name of the folder that its file lies in.
    pub original: u32,
}

impl Record {
    /// Its file, below the folder of the attack.
    pub fn file(&self) -> String {
        format!("{}/{}/{}.png", self.folder, self.original, self.index)
    }
}

/// Most classes of a dataset.
const MOST_CLASSES: usize = 10_000;
/// Most tensors of a state dictionary; a large network has a few thousand.
const MOST_TENSORS: usize = 20_000;
/// Most entries of a dictionary that is looked through for every image: it may be one and the same for all of them.
const MOST_FIELDS: usize = 16;

/// A dictionary with what is known of its place.
struct Table<'a> {
    checkpoint: &'a Checkpoint,
    field: String,
    entries: &'a [(Value, Value)],
}

impl<'a> Table<'a> {
    fn new(checkpoint: &'a Checkpoint, field: &str, value: &Value) -> Result<Self, TorchError> {
        let entries = checkpoint.pickle().dict(value);
        let entries = entries.ok_or_else(|| checkpoint.wrong(field, value, "a dictionary"))?;
        Ok(Self {
            checkpoint,
            field: field.to_owned(),
            entries,
        })
    }

    fn path(&self, key: &str) -> String {
        if self.field.is_empty() {
            short(key)
        } else {
            format!("{}.{}", self.field, short(key))
        }
    }

    /// The value under `key`; of several the last one, as in Python.
    fn find(&self, key: &str) -> Option<&'a Value> {
        let is = |entry: &&(Value, Value)| matches!(&entry.0, Value::Text(text) if &**text == key);
        Some(&self.entries.iter().rev().find(is)?.1)
    }

    fn get(&self, key: &str, expected: &'static str) -> Result<&'a Value, TorchError> {
        self.find(key).ok_or_else(|| TorchError::Field {
            path: self.checkpoint.path().to_owned(),
            field: self.path(key),
            found: "missing".to_owned(),
            expected,
        })
    }

    fn text(&self, key: &str) -> Result<&'a str, TorchError> {
        match self.get(key, "a text")? {
            Value::Text(text) => Ok(text),
            other => Err(self.checkpoint.wrong(&self.path(key), other, "a text")),
        }
    }
}

/// A whole number from 0 to `limit - 1`.
fn below(value: &Value, limit: usize) -> Option<usize> {
    match value {
        Value::Int(n) => usize::try_from(*n).ok().filter(|n| *n < limit),
        _ => None,
    }
}

impl AttackResult {
    /// Reads the checkpoint of an attack.
    pub fn read(path: &Path) -> Result<Self, TorchError> {
        let checkpoint = Checkpoint::open(path)?;
        Self::of(&checkpoint)
    }

    /// See [`AttackResult::read`].
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, TorchError> {
        let top = Table::new(checkpoint, "", &checkpoint.pickle().root)?;
        if let Some(Ok(test)) = top
            .find("bd_test")
            .map(|v| Table::new(checkpoint, "bd_test", v))
            && test.find("x").is_some()
            && test.find("bd_data_container").is_none()
        {
            return Err(TorchError::Old {
                path: checkpoint.path().to_owned(),
            });
        }
        let expected = "a number of classes, 2 to 10000";
        let classes = top.get("num_classes", expected)?;
        let classes = below(classes, MOST_CLASSES + 1)
            .filter(|n| *n >= 2)
            .ok_or_else(|| checkpoint.wrong("num_classes", classes, expected))?;
        let expected = "a tuple of height, width and 3";
        let size = top.get("img_size", expected)?;
        let image = match checkpoint.pickle().sequence(size) {
            Some([h, w, Value::Int(3)]) => below(h, 1025).zip(below(w, 1025)),
            _ => None,
        };
        let image = image.ok_or_else(|| checkpoint.wrong("img_size", size, expected))?;
        let train = match top.find("bd_train") {
            None | Some(Value::None) => None,
            Some(value) => Some(DatasetState::of(checkpoint, "bd_train", value, classes)?),
        };
        let test = top.get("bd_test", "a dataset")?;
        Ok(Self {
            model_name: top.text("model_name")?.to_owned(),
            classes,
            state: state(checkpoint, "model", top.get("model", "a state dictionary")?)?,
            dataset: top.text("clean_data")?.to_owned(),
            image,
            train,
            test: DatasetState::of(checkpoint, "bd_test", test, classes)?,
        })
    }
}

impl DatasetState {
    fn of(
        checkpoint: &Checkpoint,
        field: &str,
        value: &Value,
        classes: usize,
    ) -> Result<Self, TorchError> {
        let table = Table::new(checkpoint, field, value)?;
        let array = |key: &str, is: fn(&Array) -> bool, expected| {
            let value = table.get(key, expected)?;
            match checkpoint.pickle().object(value) {
                Some(Object::Array(Some(array))) if array.shape.len() == 1 && is(array) => {
                    Ok(&**array)
                }
                _ => Err(checkpoint.wrong(&table.path(key), value, expected)),
            }
        };
        let indicator = array("poison_indicator", is_numbers, "a vector of numbers")?;
        // NumPy's integers have 32 bits on Windows.
        let is_indices = |array: &Array| matches!(array.element, Element::I64 | Element::I32);
        let expected = "a vector of int64 or int32";
        let kept = array("original_index_array", is_indices, expected)?;
        let images = indicator.shape[0];
        let wrong = |key: &str, found: String, expected| TorchError::Field {
            path: checkpoint.path().to_owned(),
            field: table.path(key),
            found,
            expected,
        };
        let mut indices: Vec<usize> = Vec::with_capacity(kept.shape[0]);
        for cell in kept.data.chunks_exact(kept.element.bytes()) {
            let number = whole(cell);
            let index = usize::try_from(number).ok().filter(|i| *i < images);
            let Some(index) = index.filter(|i| indices.last().is_none_or(|last| last < i)) else {
                let found = format!("{number} at entry {}", indices.len());
                return Err(wrong("original_index_array", found, "ascending indices"));
            };
            indices.push(index);
        }
        let container = table.get("bd_data_container", "a dictionary")?;
        let container = Table::new(checkpoint, &table.path("bd_data_container"), container)?;
        let entries = container.get("data_dict", "a dictionary")?;
        let entries = Table::new(checkpoint, &container.path("data_dict"), entries)?;
        let mut records = Vec::with_capacity(entries.entries.len());
        for (key, value) in entries.entries {
            records.push(record(
                checkpoint,
                &entries,
                (key, value),
                (images, classes),
            )?);
        }
        records.sort_by_key(|record: &Record| record.index);
        if let Some(pair) = records.windows(2).find(|p| p[0].index == p[1].index) {
            let found = format!("index {} twice", pair[0].index);
            return Err(wrong(
                "bd_data_container.data_dict",
                found,
                "one entry each",
            ));
        }
        let flags = indicator.data.chunks_exact(indicator.element.bytes());
        let marked = flags
            .enumerate()
            .filter(|(_, flag)| is_marked(indicator.element, flag))
            .map(|(i, _)| i);
        if !marked.eq(records.iter().map(|record| record.index)) {
            let expected = "1 for the images of `bd_data_container` and 0 for the others";
            return Err(wrong(
                "poison_indicator",
                "another set".to_owned(),
                expected,
            ));
        }
        Ok(Self {
            images,
            kept: indices,
            records,
        })
    }
}

/// Whether an array can tell by its elements which images are poisoned.
fn is_numbers(array: &Array) -> bool {
    !matches!(array.element, Element::F16 | Element::Bf16)
}

fn is_marked(element: Element, cell: &[u8]) -> bool {
    match (element, cell.try_into(), cell.try_into()) {
        (Element::F64, Ok(cell), _) => f64::from_le_bytes(cell) != 0.0,
        (Element::F32, _, Ok(cell)) => f32::from_le_bytes(cell) != 0.0,
        _ => cell.iter().any(|byte| *byte != 0),
    }
}

/// A signed number of 32 or 64 bits.
fn whole(cell: &[u8]) -> i64 {
    match (cell.try_into(), cell.try_into()) {
        (Ok(cell), _) => i64::from_le_bytes(cell),
        (_, Ok(cell)) => i32::from_le_bytes(cell).into(),
        _ => unreachable!("its type is one of the two"),
    }
}

fn record(
    checkpoint: &Checkpoint,
    entries: &Table<'_>,
    (key, value): (&Value, &Value),
    (images, classes): (usize, usize),
) -> Result<Record, TorchError> {
    let Some(index) = below(key, images) else {
        return Err(checkpoint.wrong(&entries.field, key, "indices of images as keys"));
    };
    let field = entries.path(&index.to_string());
    let entry = Table::new(checkpoint, &field, value)?;
    if entry.entries.len() > MOST_FIELDS {
        return Err(checkpoint.wrong(&field, value, "a dictionary of at most 16 entries"));
    }
    let expected = "[attacked label, true label]";
    let info = entry.get("other_info", expected)?;
    let labels = match checkpoint.pickle().sequence(info) {
        Some([label, original, ..]) => below(label, classes).zip(below(original, classes)),
        _ => None,
    };
    let (label, original) =
        labels.ok_or_else(|| checkpoint.wrong(&entry.path("other_info"), info, expected))?;
    let path = entry.text("path")?;
    let mut parts = path.rsplit(['/', '\\']);
    let (file, folder_label, folder) = (parts.next(), parts.next(), parts.next());
    let agrees =
        file == Some(&format!("{index}.png")) && folder_label == Some(&original.to_string());
    match folder {
        Some(folder) if agrees && is_folder_name(folder) => Ok(Record {
            index,
            folder: folder.to_owned(),
            label: label as u32,
            original: original as u32,
        }),
        _ => Err(TorchError::Field {
            path: checkpoint.path().to_owned(),
            field: entry.path("path"),
            found: format!("`{}`", short(path)),
            expected: "a path that ends in FOLDER/TRUE LABEL/INDEX.png",
        }),
    }
}

/// Whether this is one plain folder, such as `bd_test_dataset`.
fn is_folder_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 100
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
}

/// The tensors of a state dictionary, under the names that they have in the file.
pub fn state(
    checkpoint: &Checkpoint,
    field: &str,
    value: &Value,
) -> Result<Vec<NamedTensor>, TorchError> {
    let table = Table::new(checkpoint, field, value)?;
    if table.entries.len() > MOST_TENSORS {
        return Err(TorchError::Field {
            path: checkpoint.path().to_owned(),
            field: field.to_owned(),
            found: format!("a dictionary of {}", table.entries.len()),
            expected: "at most 20000 tensors",
        });
    }
    let mut tensors = Vec::with_capacity(table.entries.len());
    for (key, value) in table.entries {
        let Value::Text(name) = key else {
            return Err(checkpoint.wrong(field, key, "names of tensors as keys"));
        };
        let (shape, data) = checkpoint.tensor(&table.path(name), value)?;
        let name = name.to_string();
        tensors.push(NamedTensor { name, shape, data });
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_of_windows_and_of_others_are_the_same_numbers() {
        for number in [0_i32, 1, 59_999, -1] {
            let wide = i64::from(number);
            assert_eq!(whole(&number.to_le_bytes()), wide);
            assert_eq!(whole(&wide.to_le_bytes()), wide);
        }
    }
}
