//! Settings as TOML text.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::Resolved;

/// One line `key = value  # origin` for each setting, for `--show-config`.
///
/// The lines are TOML with dotted keys, so they can be given back with `-c` too.
pub fn render<T>(resolved: &Resolved<T>) -> String {
    let mut text = String::new();
    for (key, value, origin) in &resolved.origins {
        writeln!(text, "{key} = {value}  # {origin}").expect("writing to a string succeeds");
    }
    text
}

/// The line of `--show-config` for an option of the command line that no settings file can hold: a comment, so that the
/// whole can be given back with `-c` all the same.
pub fn option_line(name: &str, value: &Value, origin: &str) -> String {
    format!("# {name} = {}  # {origin}\n", literal(value))
}

/// A whole document with a header per table.
pub(super) fn document(tree: &Value) -> String {
    let mut text =
        String::from("# The complete settings of a run; given with -c they repeat it.\n");
    if let Value::Object(root) = tree {
        table(root, "", &mut text);
    }
    text
}

fn table(entries: &Map<String, Value>, prefix: &str, text: &mut String) {
    // Plain keys come first, because below a header they would belong to that table.
    for (name, value) in entries.iter().filter(|(_, value)| !value.is_object()) {
        writeln!(text, "{} = {}", quoted(name), literal(value))
            .expect("writing to a string succeeds");
    }
    for (name, value) in entries {
        if let Value::Object(below) = value {
            let key = join(prefix, name);
            writeln!(text, "\n[{key}]").expect("writing to a string succeeds");
            table(below, &key, text);
        }
    }
}

/// Calls `each` with the dotted key and the value of every setting; an array is one setting.
pub(super) fn leaves(tree: &Value, prefix: &str, each: &mut dyn FnMut(&str, &Value)) {
    match tree {
        Value::Object(entries) => {
            for (name, below) in entries {
                leaves(below, &join(prefix, name), each);
            }
        }
        leaf => each(prefix, leaf),
    }
}

/// The dotted key of `name` in the table `prefix`.
pub(super) fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() {
        quoted(name)
    } else {
        format!("{prefix}.{}", quoted(name))
    }
}

/// The name as TOML writes a key.
fn quoted(name: &str) -> String {
    toml_edit::Key::new(name).display_repr().into_owned()
}

/// The value on one line of TOML.
pub(super) fn literal(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(truth) => truth.to_string(),
        Value::Number(number) => match number.as_f64() {
            // Rust's debug form always has a point or an exponent, and the fewest digits that read back the same.
            Some(float) if number.is_f64() => format!("{float:?}"),
            _ => number.to_string(),
        },
        Value::String(text) => basic_string(text),
        Value::Array(items) => format!(
            "[{}]",
            items.iter().map(literal).collect::<Vec<_>>().join(", ")
        ),
        Value::Object(entries) if entries.is_empty() => "{}".to_owned(),
        Value::Object(entries) => {
            let entries: Vec<_> = entries
                .iter()
                .map(|(name, value)| format!("{} = {}", quoted(name), literal(value)))
                .collect();
            format!("{{ {} }}", entries.join(", "))
        }
    }
}

/// The text in double quotes, on one line whatever it holds.
fn basic_string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            _ if letter.is_control() => {
                write!(quoted, "\\u{:04X}", u32::from(letter))
                    .expect("writing to a string succeeds");
            }
            _ => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}
