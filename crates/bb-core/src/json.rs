//! JSON of strangers: values and keys are counted before anything is built of them.
//!
//! Eight megabytes of `0,0,…` become a gigabyte of values, and a key that stands twice is read differently by every
//! reader; so the text is walked once, without keeping it, and only then read.

use std::collections::HashSet;
use std::fmt;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// Most values of a text, each element of an array and each entry of an object being one; the manifest of a training of
/// a thousand epochs has some ten thousand.
pub const MOST_VALUES: usize = 100_000;

/// Reads `bytes` as `T`, if they hold at most `most` values and no object has a key twice.
///
/// # Errors
/// A text that is no JSON, has more values, or a key twice, at the empty path; what `T` refuses, at its place.
pub fn parse<'de, T: Deserialize<'de>>(
    bytes: &'de [u8],
    most: usize,
) -> Result<T, serde_path_to_error::Error<serde_json::Error>> {
    check(bytes, most).map_err(|error| {
        let nowhere = serde_path_to_error::Track::new().path();
        serde_path_to_error::Error::new(nowhere, error)
    })?;
    serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(bytes))
}

/// [`parse`] without the place of an error.
///
/// # Errors
/// As [`parse`].
pub fn from_slice<'de, T: Deserialize<'de>>(
    bytes: &'de [u8],
    most: usize,
) -> serde_json::Result<T> {
    check(bytes, most)?;
    serde_json::from_slice(bytes)
}

/// Walks a text and its end.
fn check(bytes: &[u8], most: usize) -> serde_json::Result<()> {
    let mut left = most;
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let walk = Walk {
        most,
        left: &mut left,
    };
    walk.deserialize(&mut reader)?;
    reader.end()
}

/// One value: takes one of those that are left, and goes into it.
struct Walk<'a> {
    most: usize,
    left: &'a mut usize,
}

impl Walk<'_> {
    fn inner(&mut self) -> Walk<'_> {
        Walk {
            most: self.most,
            left: self.left,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        *self.left = self.left.checked_sub(1).ok_or_else(|| {
            de::Error::custom(format_args!("more values than {}, the most", self.most))
        })?;
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(self.inner())?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<(), A::Error> {
        let mut keys: HashSet<String> = HashSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            if let Some(twice) = keys.replace(key) {
                let shown: String = twice.chars().take(80).collect();
                return Err(de::Error::custom(format_args!("{shown:?} stands twice")));
            }
            entries.next_value_seed(self.inner())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(text: &str, most: usize) -> Result<Value, String> {
        from_slice(text.as_bytes(), most).map_err(|error| error.to_string())
    }

    #[test]
    fn values_are_counted_before_they_are_built() {
        let text = r#"{"a": [1, 2.5, null], "b": {"c": "d", "e": true}}"#;
        let value = json!({"a": [1, 2.5, null], "b": {"c": "d", "e": true}});
        assert_eq!(read(text, 8), Ok(value));
        let refused = read(text, 7).expect_err("one more than allowed");
        assert!(
            refused.starts_with("more values than 7, the most at line 1"),
            "{refused}"
        );
    }

    #[test]
    fn a_key_stands_once() {
        for text in [r#"{"a": 1, "a": 1}"#, r#"[{"b": {"a": 1, "\u0061": 2}}]"#] {
            let refused = read(text, 10).expect_err("a key twice");
            assert!(refused.starts_with(r#""a" stands twice"#), "{refused}");
        }
        assert!(
            read(r#"{"a": {"a": 1}}"#, 10).is_ok(),
            "in another object it may"
        );
    }

    #[test]
    fn what_is_no_json_is_refused_wherever_it_begins() {
        for text in ["", "{", "[1,]", "1 2", "{} x", "nul"] {
            assert!(read(text, 10).is_err(), "{text}");
        }
    }

    #[test]
    fn an_error_of_the_type_has_its_place() {
        #[derive(Debug, serde::Deserialize)]
        struct Inner {
            #[serde(rename = "b")]
            _b: u8,
        }
        type Map = std::collections::BTreeMap<String, Inner>;
        let error = parse::<Map>(br#"{"a": {"b": 300}}"#, 10).expect_err("no byte");
        assert_eq!(error.path().to_string(), "a.b");
        let error = parse::<Map>(br#"{"a": {"b": 3}}"#, 2).expect_err("three values");
        assert_eq!(error.path().to_string(), ".");
    }
}
