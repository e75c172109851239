//! Settings as a flat list.

use std::collections::BTreeMap;

use serde_json::Value;

/// The values of a tree by their dotted keys, in the order of the keys; strings without quotes.
pub(crate) fn leaves(tree: &Value) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    flatten(tree, "", &mut found);
    found
}

fn flatten(value: &Value, key: &str, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(table) => {
            for (name, below) in table {
                let key = if key.is_empty() {
                    name.clone()
                } else {
                    format!("{key}.{name}")
                };
                flatten(below, &key, into);
            }
        }
        Value::String(text) => {
            into.insert(key.to_owned(), text.clone());
        }
        other => {
            into.insert(key.to_owned(), other.to_string());
        }
    }
}
