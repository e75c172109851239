//! Rows of measurements, and how an earlier version numbered them.

use serde_json::Value;

use crate::json;

/// Most values of a row.
const MOST_VALUES: usize = 100_000;

/// The rows (a JSON object a line) with the first epoch as 1, if they have it as 0; `None` if they need no change.
///
/// Earlier versions counted epochs from 0 in `metrics.jsonl`. A run that was begun then and resumes now is to end with one
/// way of counting.
pub fn from_one(rows: &str) -> Option<String> {
    let mut parsed: Vec<Value> = rows
        .lines()
        .map(|row| json::from_slice(row.as_bytes(), MOST_VALUES))
        .collect::<Result<_, _>>()
        .ok()?;
    if !parsed.iter().any(|row| row["epoch"] == 0) {
        return None;
    }
    let mut text = String::new();
    for row in &mut parsed {
        if let Some(epoch) = row.get("epoch").and_then(Value::as_u64) {
            row["epoch"] = (epoch + 1).into();
        }
        text.push_str(&row.to_string());
        text.push('\n');
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_counted_from_one() {
        let old = "{\"stage\":\"suspect\",\"acc\":0.1}\n{\"epoch\":0,\"loss\":0.30000000000000004}\n{\"epoch\":1,\"loss\":null}\n";
        let new = "{\"stage\":\"suspect\",\"acc\":0.1}\n{\"epoch\":1,\"loss\":0.30000000000000004}\n{\"epoch\":2,\"loss\":null}\n";
        assert_eq!(from_one(old).as_deref(), Some(new));
        assert_eq!(from_one(new), None, "what is right stays");
        for other in ["", "{\"stage\":\"final\"}\n", "no row\n"] {
            assert_eq!(from_one(other), None, "{other}");
        }
    }
}
