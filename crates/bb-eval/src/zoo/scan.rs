//! What a file of tensors is and what can be done with it, for people; nothing in it is run.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use bb_core::cli::Failure;
use bb_zoo::safetensors::{Safetensors, is_safetensors};
use bb_zoo::torch::pickle::short;
use bb_zoo::torch::{AttackResult, Checkpoint, Detail, nested};

use super::source::{self, Wanted};
use super::{Rules, names, tensors};

/// What a file is, in one line, then what it holds: a page, or all.
///
/// # Errors
/// A file that no reader accepts.
pub fn scan(path: &Path, key: Option<&str>, all: bool) -> Result<String, Failure> {
    let file = source::file_of(path)?;
    let shown = path.display();
    if is_safetensors(&file)? {
        let file = Safetensors::open(&file)?;
        let tensors = file.list().map(|it| (it.name.as_str(), &it.shape[..]));
        let mut text = network(&tensors.collect::<Vec<_>>(), None, path)?;
        let most = if all { 5000 } else { 12 };
        // Writing to a string cannot fail.
        for listed in file.list().take(most) {
            let _ = writeln!(
                text,
                "  {}: tensor {} {:?}",
                short(&listed.name),
                listed.dtype,
                listed.shape
            );
        }
        if file.list().len() > most {
            let _ = writeln!(text, "  and {} more", file.list().len() - most);
        }
        return Ok(text);
    }
    let checkpoint = Checkpoint::open(&file)?;
    let refused = |failure: Failure| {
        let text = failure.report(false);
        let lines = text
            .lines()
            .map(|line| line.strip_prefix("error: ").unwrap_or(line));
        format!("refused: {}\n", lines.collect::<Vec<_>>().join("; "))
    };
    let verdict = if key.is_none() && source::entry(&checkpoint, "bd_test").is_some() {
        match AttackResult::of(&checkpoint) {
            Ok(record) => {
                let train = record.train.as_ref().map_or(0, |set| set.records.len());
                format!(
                    "a BackdoorBench record of {} for {}, {} classes, with {train} poisoned training and {} poisoned test images; import it with `bb-eval zoo import {shown} --dataset {}`\n",
                    short(&record.model_name),
                    short(&record.dataset),
                    record.classes,
                    record.test.records.len(),
                    short(&record.dataset),
                )
            }
            Err(error) => refused(error.into()),
        }
    } else {
        let wanted = Wanted {
            key,
            ..Wanted::default()
        };
        match source::network(&checkpoint, wanted) {
            Ok(Some((key, value))) => {
                let place = nested::place(&checkpoint, &key, value);
                match place {
                    Ok(place) => {
                        let tensors = place.tensors.iter();
                        let tensors = tensors.map(|(name, tensor)| (*name, &tensor.shape[..]));
                        let key = Some(&*key).filter(|key| !key.is_empty());
                        network(&tensors.collect::<Vec<_>>(), key, path)?
                    }
                    Err(error) => refused(error.into()),
                }
            }
            Ok(None) => refused(source::no_network(&checkpoint)),
            Err(failure) => refused(failure),
        }
    };
    let detail = if all { Detail::FULL } else { Detail::PAGE };
    Ok(verdict + &bb_zoo::torch::scan(&checkpoint, detail))
}

/// What a dictionary of tensors is, by their names and sizes.
fn network(found: &[(&str, &[usize])], key: Option<&str>, path: &Path) -> Result<String, Failure> {
    let count = found.len();
    let below = key.map_or_else(String::new, |key| format!(" below `{}`", short(key)));
    let names: Vec<&str> = found.iter().map(|(name, _)| *name).collect();
    let command = |arch: &str, more: &str| {
        let key = key.map_or_else(String::new, |key| format!(" --key {}", short(key)));
        let more = if more.is_empty() {
            String::new()
        } else {
            format!(" {more}")
        };
        format!(
            "`bb-eval zoo import {}{key} --arch {arch}{more} --dataset NAME`",
            path.display()
        )
    };
    let mut helped = None;
    for arch in bb_nn::arch::NAMES {
        let own = tensors::names_of(arch)?;
        let known: BTreeSet<&str> = own.iter().map(String::as_str).collect();
        let prefix = names::prefix(&names, &known);
        if tensors::are_names(names.iter().copied(), &own) {
            let size = |own: Option<&String>, axes: usize| {
                let own = own?;
                let tensor = found.iter().find(|(name, _)| {
                    let rest = prefix.and_then(|prefix| name.strip_prefix(prefix));
                    name == own || rest == Some(own)
                });
                tensor
                    .filter(|(_, shape)| shape.len() == axes)
                    .map(|(_, shape)| shape[0])
            };
            // The first and the last layer.
            let is_weight = |name: &&String| name.ends_with(".weight");
            let width = size(own.iter().find(is_weight), 4);
            let classes = size(own.iter().rev().find(is_weight), 2);
            let mut text = format!("a state dictionary of {count} tensors{below} for {arch}");
            if let (Some(width), Some(classes)) = (width, classes) {
                let _ = write!(text, " of width {width} and {classes} classes");
            }
            if let Some(prefix) = prefix {
                let _ = write!(text, ", behind the prefix `{}`", short(prefix));
            }
            let _ = writeln!(text, "; import it with {}", command(arch, ""));
            return Ok(text);
        }
        let help = names::help(&names, &Rules::default(), &known, tensors::is_optional);
        if let Some(help) = help.filter(|help| help.whole && helped.is_none()) {
            helped = Some(command(arch, &help.arguments));
        }
    }
    Ok(match helped {
        Some(command) => format!(
            "a state dictionary of {count} tensors{below} under other names; import it with {command}\n"
        ),
        None => format!(
            "a state dictionary of {count} tensors{below}, which are those of no known network ({})\n",
            bb_nn::arch::NAMES.join(", ")
        ),
    })
}
