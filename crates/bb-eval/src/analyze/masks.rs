//! The masks that a repair learned for the channels of a layer, read from its cell.
//!
//! ANP and RNP write `masks.csv`, a row for each channel of each batch normalisation: `norm,channel,mask`, where `norm`
//! names the scales. Of these only one layer's are wanted, and every channel of it must be there once, in order.

use std::path::PathBuf;

use bb_core::cell::Cell;
use bb_core::cell::contract::Input;
use bb_core::cli::Failure;
use bb_core::files::{self, Links};
use bb_defense::registry;
use serde_json::Value;

use super::subject::Subject;
use super::tac::{End, Layer, Ranking};
use super::{AnalyzeError, named};

/// Name of the table in a cell.
pub const FILE: &str = "masks.csv";
/// Most bytes of the table: a row for each of some thousand channels.
const LONGEST: u64 = 16 << 20;

/// How the repairs in these cells rank the `channels` channels of a layer, each under a name of its own, and the cells for
/// the record. One that is given again counts once.
///
/// # Errors
/// If a cell is no repair of this model, has no masks, or has others than one for each channel.
pub fn rankings(
    cells: &[PathBuf],
    subject: &Subject,
    (layer, channels): (&Layer, usize),
) -> Result<(Vec<Ranking>, Vec<Value>), Failure> {
    let (mut found, mut record) = (Vec::<Ranking>::new(), Vec::new());
    let expected = subject.cell.digest();
    for path in cells {
        let cell = Cell::load(path)?;
        let repaired = cell.manifest.inputs.get(Input::Attack.name());
        if repaired != Some(&expected) {
            return Err(AnalyzeError::NotItsRepair {
                path: cell.dir.clone(),
                expected,
                found: repaired.cloned(),
            }
            .into());
        }
        let own = named(&cell);
        if record.contains(&own) {
            continue;
        }
        if !cell.manifest.files.contains_key(FILE) {
            return Err(AnalyzeError::NoMasks { path: cell.dir }.into());
        }
        let path = cell.file(FILE);
        let scores = files::read_text(&path, Links::Refuse, LONGEST)
            .map_err(|error| error.to_string())
            .and_then(|text| of_layer(&text, &format!("{}.weight", layer.norm), channels))
            .map_err(|reason| AnalyzeError::Masks { path, reason })?;
        let method = &cell.manifest.method;
        let title = registry::find(method, &[]).map_or(method.as_str(), |found| found.info().title);
        // The second repair by a method, with other settings, say, has its cell's id behind the name.
        let taken = found.iter().any(|ranking| ranking.id == *method);
        let name = |name: &str| {
            if taken {
                format!("{name}-{}", cell.manifest.id)
            } else {
                name.to_owned()
            }
        };
        found.push(Ranking {
            id: name(method),
            title: name(title),
            suspicious: End::Lowest,
            scores,
        });
        record.push(own);
    }
    Ok((found, record))
}

/// The masks of the channels whose scales are called `norm`, or what is wrong with the table.
fn of_layer(text: &str, norm: &str, channels: usize) -> Result<Vec<f64>, String> {
    let mut masks = Vec::with_capacity(channels);
    for (number, line) in text.lines().enumerate().skip(1) {
        let wrong = |what: &str| format!("line {}: {what}, found `{line}`", number + 1);
        let [name, channel, mask] = line.split(',').collect::<Vec<_>>()[..] else {
            return Err(wrong("expected `norm,channel,mask`"));
        };
        if name != norm {
            continue;
        }
        if channel != masks.len().to_string() {
            return Err(wrong(&format!("expected channel {}", masks.len())));
        }
        let mask: f64 = mask.parse().map_err(|_| wrong("expected a mask, 0 to 1"))?;
        if !(0.0..=1.0).contains(&mask) {
            return Err(wrong("expected a mask, 0 to 1"));
        }
        masks.push(mask);
    }
    if masks.len() != channels {
        return Err(format!(
            "expected {channels} masks of `{norm}`, found {}",
            masks.len()
        ));
    }
    Ok(masks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_layer_is_picked_out_of_the_table() {
        let text =
            "norm,channel,mask\nbn1.weight,0,1.0000\nbn2.weight,0,0.2500\nbn2.weight,1,0.0000\n";
        assert_eq!(of_layer(text, "bn2.weight", 2), Ok(vec![0.25, 0.0]));
        assert_eq!(of_layer(text, "bn1.weight", 1), Ok(vec![1.0]));
    }

    #[test]
    fn a_table_that_does_not_fit_says_where() {
        let head = "norm,channel,mask\n";
        for (rows, expected) in [
            ("", "expected 2 masks of `bn.weight`, found 0"),
            (
                "bn.weight,0,1\n",
                "expected 2 masks of `bn.weight`, found 1",
            ),
            (
                "bn.weight,0\n",
                "line 2: expected `norm,channel,mask`, found `bn.weight,0`",
            ),
            (
                "bn.weight,0,1\nbn.weight,2,1\n",
                "line 3: expected channel 1, found `bn.weight,2,1`",
            ),
            (
                "bn.weight,0,NaN\n",
                "line 2: expected a mask, 0 to 1, found `bn.weight,0,NaN`",
            ),
            (
                "bn.weight,0,x\n",
                "line 2: expected a mask, 0 to 1, found `bn.weight,0,x`",
            ),
        ] {
            let found = of_layer(&format!("{head}{rows}"), "bn.weight", 2);
            assert_eq!(found, Err(expected.to_owned()), "{rows}");
        }
    }
}
