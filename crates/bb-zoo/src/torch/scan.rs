//! What is inside a checkpoint, for people.

use super::file::{Checkpoint, TorchError};
use super::pickle::{Object, Value};
use std::fmt::Write as _;
use std::path::Path;

/// What is inside a checkpoint, one line for each value; nothing in it is run.
///
/// Shown are four levels, 200 entries of each dictionary, 80 characters of each text and 5000 lines: a small file can
/// hold one dictionary at so many places that it would never be shown whole.
///
/// # Errors
/// As [`Checkpoint::open`].
pub fn scan(path: &Path) -> Result<String, TorchError> {
    let checkpoint = Checkpoint::open(path)?;
    let mut text = String::new();
    let mut left = LINES;
    describe(
        &checkpoint,
        &checkpoint.pickle().root,
        "",
        0,
        (&mut text, &mut left),
    );
    if left == 0 {
        text.push_str("and more\n");
    }
    Ok(text)
}

const LEVELS: usize = 4;
const ENTRIES: usize = 200;
const CHARACTERS: usize = 80;
const LINES: usize = 5000;

fn describe(
    checkpoint: &Checkpoint,
    value: &Value,
    name: &str,
    level: usize,
    (text, left): (&mut String, &mut usize),
) {
    if *left == 0 {
        return;
    }
    *left -= 1;
    let pickle = checkpoint.pickle();
    let short = |text: &str| text.chars().take(CHARACTERS).collect::<String>();
    let indent = "  ".repeat(level);
    let what = match (value, pickle.object(value)) {
        (Value::Text(text), _) => format!("{:?}", short(text)),
        (Value::Int(n), _) => n.to_string(),
        (Value::Float(x), _) => x.to_string(),
        (Value::Bool(b), _) => b.to_string(),
        (_, Some(Object::Tensor(tensor))) => {
            format!("tensor {:?} {:?}", tensor.storage.element, tensor.shape)
        }
        (_, Some(Object::Array(Some(array)))) => {
            format!("array {:?} {:?}", array.element, array.shape)
        }
        (_, Some(Object::Dict(entries))) => format!("dictionary of {}", entries.len()),
        (_, Some(Object::List(items) | Object::Tuple(items))) => {
            format!("{} of {}", pickle.kind(value), items.len())
        }
        _ => pickle.kind(value).to_owned(),
    };
    let name = short(name);
    let name = name.escape_debug();
    let separator = if level == 0 { "" } else { ": " };
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{indent}{name}{separator}{what}");
    if level >= LEVELS {
        return;
    }
    if let Some(entries) = pickle.dict(value) {
        for (key, value) in entries.iter().take(ENTRIES) {
            let name = match key {
                Value::Text(text) => short(text),
                Value::Int(n) => n.to_string(),
                other => pickle.kind(other).to_owned(),
            };
            describe(checkpoint, value, &name, level + 1, (text, left));
        }
        if entries.len() > ENTRIES {
            let _ = writeln!(text, "{indent}  and {} more", entries.len() - ENTRIES);
        }
    }
}
