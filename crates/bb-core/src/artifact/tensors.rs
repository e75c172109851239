//! Safetensors with the same bits for the same content.

use std::collections::BTreeMap;
use std::fmt::Display;

use safetensors::View;

use super::ArtifactError;

/// Bytes of the number in front of the header.
const LENGTH: usize = size_of::<u64>();

/// A safetensors file as bytes; equal tensors and metadata give equal bytes.
///
/// The crate `safetensors` keeps the metadata in a hash map and writes it in the order of that map, which differs from
/// run to run; here it is sorted.
pub fn to_safetensors<S, V>(
    tensors: impl IntoIterator<Item = (S, V)>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, ArtifactError>
where
    S: AsRef<str> + Ord + Display,
    V: View,
{
    let mut bytes = safetensors::serialize(tensors, None)
        .map_err(|source| ArtifactError::Tensors { source })?;
    if metadata.is_empty() {
        return Ok(bytes);
    }
    let length = u64::from_le_bytes(
        bytes[..LENGTH]
            .try_into()
            .expect("the file begins with the length of its header"),
    );
    let end = LENGTH + length as usize;
    let old = std::str::from_utf8(&bytes[LENGTH..end])
        .expect("the header is JSON")
        .trim_end()
        .strip_prefix('{')
        .expect("the header is an object");
    let entries = serde_json::to_string(metadata).expect("a map of strings is valid JSON");
    let comma = if old == "}" { "" } else { "," };
    let mut header = format!("{{\"__metadata__\":{entries}{comma}{old}").into_bytes();
    // The format wants the tensors aligned to 8 bytes.
    header.resize(header.len().next_multiple_of(LENGTH), b' ');
    let length = header.len() as u64;
    bytes.splice(..end, length.to_le_bytes().into_iter().chain(header));
    Ok(bytes)
}
