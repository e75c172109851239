//! State dictionaries: named candle tensors in PyTorch's registration order, and their safetensors files.

use crate::error::NnError;
use crate::flat::Flat;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::TensorView;
use std::collections::BTreeMap;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Key of the metadata entry that keeps PyTorch's order, since the file format sorts tensors by itself.
const ORDER_KEY: &str = "order";

/// Ordered name to tensor.
#[derive(Clone, Debug, Default)]
pub struct StateDict {
    entries: Vec<(String, Tensor)>,
}

impl StateDict {
    /// An empty dictionary.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tensor at the end, or replaces the one of that name in place.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) {
        let name = name.into();
        match self.entries.iter_mut().find(|(n, _)| *n == name) {
            Some((_, slot)) => *slot = tensor,
            None => self.entries.push((name, tensor)),
        }
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.entries.iter().find(|(n, _)| n == name).map(|(_, t)| t)
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
                Some(rest) => inside.entries.push((rest.to_owned(), tensor)),
                None => outside.entries.push((name, tensor)),
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
            let (dtype, bytes): (safetensors::Dtype, Vec<u8>) = match tensor.dtype() {
                DType::F32 => {
                    let values = floats(name, tensor)?;
                    if let Some(index) = values.iter().position(|v| !v.is_finite()) {
                        return Err(NnError::NotFinite {
                            name: name.clone(),
                            index,
                        });
                    }
                    (
                        safetensors::Dtype::F32,
                        values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                    )
                }
                DType::I64 => {
                    let values = tensor.flatten_all()?.to_vec1::<i64>()?;
                    (
                        safetensors::Dtype::I64,
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
        let mut all = serde_json::Map::new();
        all.insert(ORDER_KEY.to_owned(), order.into());
        for (k, v) in metadata {
            all.insert(k.clone(), v.clone().into());
        }
        let info = HashMap::from([("bb".to_owned(), serde_json::Value::Object(all).to_string())]);
        safetensors::serialize(views, Some(info)).map_err(|e| NnError::Format {
            path: "memory".into(),
            reason: e.to_string(),
        })
    }

    /// The metadata that [`StateDict::to_bytes`] put into a file; empty for files of others.
    pub fn metadata(bytes: &[u8], path: &Path) -> Result<BTreeMap<String, String>, NnError> {
        let (_, header) =
            safetensors::SafeTensors::read_metadata(bytes).map_err(|e| NnError::Format {
                path: path.to_owned(),
                reason: e.to_string(),
            })?;
        let all = declared(header.metadata().as_ref());
        let fields = all
            .as_ref()
            .and_then(serde_json::Value::as_object)
            .into_iter()
            .flatten();
        Ok(fields
            .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
            .collect())
    }

    /// Reads a safetensors file; tensors come in the order the file declares in its metadata, else by name.
    pub fn load(path: &Path) -> Result<Self, NnError> {
        let bytes = fs_err::read(path).map_err(|source| NnError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::from_bytes(&bytes, path)
    }

    /// [`StateDict::load`] on bytes in memory; `path` is for messages.
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self, NnError> {
        let format = |reason: String| NnError::Format {
            path: path.to_owned(),
            reason,
        };
        let (_, header) =
            safetensors::SafeTensors::read_metadata(bytes).map_err(|e| format(e.to_string()))?;
        let file =
            safetensors::SafeTensors::deserialize(bytes).map_err(|e| format(e.to_string()))?;
        let mut names: Vec<String> = file.names().into_iter().map(ToString::to_string).collect();
        names.sort();
        if let Some(order) = declared_order(header.metadata().as_ref()) {
            let rank = |n: &String| order.iter().position(|o| o == n).unwrap_or(usize::MAX);
            names.sort_by_key(rank);
        }
        let mut state = Self::new();
        for name in names {
            let view = file.tensor(&name).map_err(|e| format(e.to_string()))?;
            let tensor = match view.dtype() {
                safetensors::Dtype::F32 => {
                    let values: Vec<f32> = view
                        .data()
                        .as_chunks::<4>()
                        .0
                        .iter()
                        .map(|b| f32::from_le_bytes(*b))
                        .collect();
                    if let Some(index) = values.iter().position(|v| !v.is_finite()) {
                        return Err(NnError::NotFinite { name, index });
                    }
                    Tensor::from_vec(values, view.shape(), &Device::Cpu)?
                }
                safetensors::Dtype::I64 => {
                    let values: Vec<i64> = view
                        .data()
                        .as_chunks::<8>()
                        .0
                        .iter()
                        .map(|b| i64::from_le_bytes(*b))
                        .collect();
                    Tensor::from_vec(values, view.shape(), &Device::Cpu)?
                }
                other => {
                    return Err(NnError::DType {
                        name,
                        expected: "F32 or I64",
                        found: format!("{other:?}"),
                    });
                }
            };
            state.entries.push((name, tensor));
        }
        Ok(state)
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

fn declared(metadata: Option<&HashMap<String, String>>) -> Option<serde_json::Value> {
    serde_json::from_str(metadata?.get("bb")?).ok()
}

fn declared_order(metadata: Option<&HashMap<String, String>>) -> Option<Vec<String>> {
    declared(metadata)?
        .get(ORDER_KEY)?
        .as_array()?
        .iter()
        .map(|v| v.as_str().map(str::to_owned))
        .collect()
}
