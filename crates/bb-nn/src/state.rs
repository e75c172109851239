//! State dictionaries: named candle tensors in PyTorch's registration order, and their safetensors files.

use crate::error::NnError;
use crate::flat::Flat;
use bb_core::artifact::{Header, Listed};
use bb_core::files::Links;
use bb_core::json;
use bb_core::pickle::short;
use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// Key of our own metadata.
const OWN_KEY: &str = "bb";
/// Key of the metadata entry that keeps PyTorch's order, since the file format sorts tensors by itself.
const ORDER_KEY: &str = "order";

/// Ordered name to tensor.
#[derive(Clone, Debug, Default)]
pub struct StateDict {
    entries: Vec<(String, Tensor)>,
    /// Where in `entries` each name is.
    places: HashMap<String, usize>,
}

impl StateDict {
    /// An empty dictionary.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tensor at the end, or replaces the one of that name in place.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) {
        let name = name.into();
        match self.places.get(&name) {
            Some(&place) => self.entries[place].1 = tensor,
            None => {
                self.places.insert(name.clone(), self.entries.len());
                self.entries.push((name, tensor));
            }
        }
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        Some(&self.entries[*self.places.get(name)?].1)
    }

    /// Names and tensors in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.entries.iter().map(|(n, t)| (n.as_str(), t))
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds the tensors of a vector under their names behind `prefix`.
    pub fn insert_flat(&mut self, prefix: &str, flat: &Flat) -> Result<(), NnError> {
        for (i, entry) in flat.layout().entries().iter().enumerate() {
            self.insert(format!("{prefix}{}", entry.name), flat.to_tensor(i)?);
        }
        Ok(())
    }

    /// Fills a vector with the tensors of its names, which must be all that there are.
    ///
    /// # Errors
    /// A tensor that is missing, unknown or of another shape or type.
    pub fn read_flat(&self, flat: &mut Flat) -> Result<(), NnError> {
        let layout = Arc::clone(flat.layout());
        for (i, entry) in layout.entries().iter().enumerate() {
            let name = &entry.name;
            let tensor = self.get(name).ok_or_else(|| NnError::MissingTensor {
                name: name.clone(),
                expected: entry.shape.clone(),
            })?;
            if tensor.dims() != entry.shape.as_slice() {
                return Err(NnError::Shape {
                    name: name.clone(),
                    expected: entry.shape.clone(),
                    found: tensor.dims().to_vec(),
                });
            }
            flat.set_plain(i, &floats(name, tensor)?);
        }
        match self
            .iter()
            .find(|(name, _)| layout.position(name).is_none())
        {
            None => Ok(()),
            Some((name, _)) => Err(NnError::UnusedTensor {
                name: name.to_owned(),
                arch: "this vector".to_owned(),
            }),
        }
    }

    /// The tensors behind `prefix`, under the names without it, and all others.
    pub fn split(self, prefix: &str) -> (Self, Self) {
        let (mut inside, mut outside) = (Self::new(), Self::new());
        for (name, tensor) in self.entries {
            match name.strip_prefix(prefix) {
                Some(rest) => inside.insert(rest, tensor),
                None => outside.insert(name, tensor),
            }
        }
        (inside, outside)
    }

    /// Adds all tensors of `other` under their names behind `prefix`.
    pub fn insert_all(&mut self, prefix: &str, other: &Self) {
        for (name, tensor) in other.iter() {
            self.insert(format!("{prefix}{name}"), tensor.clone());
        }
    }

    /// Elements of an `f32` tensor in row-major order.
    pub fn floats(&self, name: &str) -> Option<Result<Vec<f32>, NnError>> {
        self.get(name).map(|t| floats(name, t))
    }

    /// The bytes of a safetensors file with this content. The same content gives the same bytes.
    ///
    /// # Errors
    /// [`NnError::NotFinite`] if a float is NaN or infinite: such a file must not come to be.
    pub fn to_bytes(&self, metadata: &BTreeMap<String, String>) -> Result<Vec<u8>, NnError> {
        let mut raw = Vec::with_capacity(self.entries.len());
        for (name, tensor) in &self.entries {
            let (dtype, bytes): (Dtype, Vec<u8>) = match tensor.dtype() {
                DType::F32 => {
                    let values = floats(name, tensor)?;
                    if let Some(index) = values.iter().position(|v| !v.is_finite()) {
                        return Err(NnError::NotFinite {
                            name: name.clone(),
                            index,
                        });
                    }
                    (
                        Dtype::F32,
                        values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                    )
                }
                DType::I64 => {
                    let values = tensor.flatten_all()?.to_vec1::<i64>()?;
                    (
                        Dtype::I64,
                        values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                    )
                }
                other => {
                    return Err(NnError::DType {
                        name: name.clone(),
                        expected: "f32 or i64",
                        found: format!("{other:?}"),
                    });
                }
            };
            raw.push((name.as_str(), dtype, tensor.dims().to_vec(), bytes));
        }
        let mut views = Vec::with_capacity(raw.len());
        for (name, dtype, shape, bytes) in &raw {
            let view =
                TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| NnError::Format {
                    path: (*name).into(),
                    reason: e.to_string(),
                })?;
            views.push((*name, view));
        }
        let order: Vec<&str> = self.entries.iter().map(|(n, _)| n.as_str()).collect();
        // One metadata value only: the library keeps metadata in a hash map, whose order would leak into the bytes.
        let mut all = Map::new();
        all.insert(ORDER_KEY.to_owned(), order.into());
        for (k, v) in metadata {
            all.insert(k.clone(), v.clone().into());
        }
        let info = HashMap::from([(OWN_KEY.to_owned(), Value::Object(all).to_string())]);
        safetensors::serialize(views, Some(info)).map_err(|e| NnError::Format {
            path: "memory".into(),
            reason: e.to_string(),
        })
    }

    /// The metadata that [`StateDict::to_bytes`] put into a file; empty for files of others.
    pub fn metadata(bytes: &[u8], path: &Path) -> Result<BTreeMap<String, String>, NnError> {
        let header = Header::of(bytes).map_err(NnError::header(path))?;
        Self::about(&header, path)
    }

    /// [`StateDict::metadata`] of a header alone.
    pub fn about(header: &Header, path: &Path) -> Result<BTreeMap<String, String>, NnError> {
        let fields = own_metadata(header, path)?.into_iter();
        let text = |value| match value {
            Value::String(text) => Some(text),
            _ => None,
        };
        Ok(fields
            .filter_map(|(key, value)| Some((key, text(value)?)))
            .collect())
    }

    /// Reads a safetensors file; tensors come in the order the file declares in its metadata, else by name.
    pub fn load(path: &Path) -> Result<Self, NnError> {
        let (header, mut file) =
            Header::open(path, Links::Follow).map_err(NnError::header(path))?;
        Self::read(&header, &mut file, path)
    }

    /// [`StateDict::load`] on bytes in memory; `path` is for messages.
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self, NnError> {
        let header = Header::of(bytes).map_err(NnError::header(path))?;
        let end = header
            .tensors()
            .first()
            .map_or(0, |first| first.place.start);
        Self::read(&header, &mut &bytes[end..], path)
    }

    /// The tensors of a file that stands at the first of them.
    pub(crate) fn read(
        header: &Header,
        reader: &mut impl Read,
        path: &Path,
    ) -> Result<Self, NnError> {
        let order = own_metadata(header, path)?.remove(ORDER_KEY);
        let mut ranks = HashMap::new();
        for name in order.iter().filter_map(Value::as_array).flatten() {
            let next = ranks.len();
            ranks
                .entry(name.as_str().unwrap_or_default())
                .or_insert(next);
        }
        let mut entries = Vec::with_capacity(header.tensors().len());
        for listed in header.tensors() {
            let bytes = listed.read(reader).map_err(NnError::header(path))?;
            entries.push((&listed.name, tensor(listed, &bytes)?));
        }
        entries.sort_by_key(|(name, _)| {
            let rank = ranks.get(name.as_str()).copied();
            (rank.unwrap_or(usize::MAX), *name)
        });
        let mut state = Self::new();
        for (name, tensor) in entries {
            state.insert(name, tensor);
        }
        Ok(state)
    }
}

/// A tensor of finite numbers.
fn tensor(listed: &Listed, bytes: &[u8]) -> Result<Tensor, NnError> {
    let (name, shape) = (&listed.name, listed.shape.as_slice());
    match listed.dtype {
        Dtype::F32 => {
            let (elements, _) = bytes.as_chunks();
            let values: Vec<f32> = elements.iter().map(|b| f32::from_le_bytes(*b)).collect();
            if let Some(index) = values.iter().position(|v| !v.is_finite()) {
                let name = name.clone();
                return Err(NnError::NotFinite { name, index });
            }
            Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
        }
        Dtype::I64 => {
            let (elements, _) = bytes.as_chunks();
            let values: Vec<i64> = elements.iter().map(|b| i64::from_le_bytes(*b)).collect();
            Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
        }
        other => Err(NnError::DType {
            name: name.clone(),
            expected: "F32 or I64",
            found: format!("{other:?}"),
        }),
    }
}

fn floats(name: &str, tensor: &Tensor) -> Result<Vec<f32>, NnError> {
    if tensor.dtype() != DType::F32 {
        return Err(NnError::DType {
            name: name.to_owned(),
            expected: "f32",
            found: format!("{:?}", tensor.dtype()),
        });
    }
    Ok(tensor.flatten_all()?.to_vec1::<f32>()?)
}

/// What [`StateDict::to_bytes`] says of a file, as one text of its metadata.
fn own_metadata(header: &Header, path: &Path) -> Result<Map<String, Value>, NnError> {
    let Some(text) = header.metadata().get(OWN_KEY) else {
        return Ok(Map::new());
    };
    json::from_slice(text.as_bytes(), json::MOST_VALUES).map_err(|error| NnError::Format {
        path: path.to_owned(),
        reason: format!("`{OWN_KEY}` in its metadata: {}", short(&error.to_string())),
    })
}
