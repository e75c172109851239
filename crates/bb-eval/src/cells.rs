//! What lies in a folder of results, one line for each cell.
use std::path::{Path, PathBuf};

use bb_attack::results::AttackResults;
use bb_core::cell::contract::Input;
use bb_core::cell::store::Folders;
use bb_core::cell::{Cell, CellError, Kind};
use bb_core::metrics::{Ratio, Scores};
use bb_defense::results::Results;
use serde_json::json;

use crate::collect::CollectError;
use crate::plan::State;

/// Which cells are listed; what is not given is not looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Attacks or defenses.
    pub kind: Option<Kind>,
    /// The method.
    pub method: Option<String>,
    /// The dataset.
    pub dataset: Option<String>,
    /// The network, with or without its width.
    pub arch: Option<String>,
    /// The seed; only complete cells have one.
    pub seed: Option<u64>,
    /// The word of the [`State`].
    pub state: Option<String>,
    /// The first digits of the id of an attack: that attack and its repairs.
    pub attack: Option<String>,
}

/// A cell, or what is there of one.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its folder.
    pub dir: PathBuf,
    /// What it is a result of.
    pub kind: Kind,
    /// How much is there.
    pub state: State,
    /// Of a repair, the id of its attack, if that is in the same folder of results.
    pub attack: Option<String>,
}

impl Listed {
    /// A part of the path, counted from its end.
    fn part(&self, from_end: usize) -> String {
        let part = self.dir.iter().rev().nth(from_end).unwrap_or_default();
        part.to_string_lossy().replace(char::is_control, " ")
    }

    /// The name of its folder, which is the id of a cell.
    pub fn id(&self) -> String {
        self.part(0)
    }

    /// The dataset and the network, `cifar10-preactresnet18-w16`.
    pub fn task(&self) -> String {
        self.part(1)
    }

    /// The method.
    pub fn method(&self) -> String {
        self.part(2)
    }

    /// The seed of a complete cell.
    pub fn seed(&self) -> Option<u64> {
        self.cell().map(|cell| cell.manifest.seed)
    }

    fn cell(&self) -> Option<&Cell> {
        match &self.state {
            State::Complete(cell) => Some(cell),
            _ => None,
        }
    }

    /// The scores of the model of a complete cell.
    pub fn scores(&self) -> Option<Scores> {
        let cell = self.cell()?;
        match self.kind {
            Kind::Attack => Some(AttackResults::of(cell).ok()?.scores()),
            Kind::Defense => Some(cell.results::<Results>().ok()?.after),
        }
    }

    /// Why it failed, or what is wrong with it.
    pub fn reason(&self) -> Option<&str> {
        match &self.state {
            State::Failed { reason, .. } | State::Damaged(reason) => Some(reason),
            State::Complete(_) | State::Partial | State::Missing => None,
        }
    }

    fn fits(&self, filter: &Filter) -> bool {
        let task = self.task();
        let (method, word) = (self.method(), self.state.word());
        let is = |wanted: &Option<String>, own: &str| wanted.as_ref().is_none_or(|w| w == own);
        // Names of networks begin with a letter, and may be given without `-w16`.
        let dataset = |wanted: &String| {
            task.strip_prefix(wanted.as_str())
                .is_some_and(|t| t.starts_with('-'))
        };
        let arch = |wanted: &String| {
            task.ends_with(&format!("-{wanted}")) || task.contains(&format!("-{wanted}-w"))
        };
        let begins = |id: &String, digits: &String| id.starts_with(digits.as_str());
        let attack = |digits: &String| match self.kind {
            Kind::Attack => begins(&self.id(), digits),
            Kind::Defense => self.attack.as_ref().is_some_and(|id| begins(id, digits)),
        };
        filter.kind.is_none_or(|kind| kind == self.kind)
            && is(&filter.method, &method)
            && filter.dataset.as_ref().is_none_or(dataset)
            && filter.arch.as_ref().is_none_or(arch)
            && filter.seed.is_none_or(|seed| self.seed() == Some(seed))
            && is(&filter.state, word)
            && filter.attack.as_ref().is_none_or(attack)
    }
}

/// The cells of a folder of results, attacks first, each kind by path. Complete ones are verified.
///
/// # Errors
/// If a folder cannot be listed. Links are given as damaged cells, since nothing is read through them.
pub fn list(out: &Path, filter: &Filter) -> Result<Vec<Listed>, CollectError> {
    // A wrong name is no empty folder.
    fs_err::read_dir(out)?;
    let mut found: Vec<Listed> = Vec::new();
    for kind in [Kind::Attack, Kind::Defense] {
        let folders = Folders::of(out, kind)?;
        found.extend(folders.cells.into_iter().map(|dir| Listed {
            state: State::of(&dir),
            dir,
            kind,
            attack: None,
        }));
        found.extend(folders.links.into_iter().map(|path| Listed {
            state: State::Damaged(CellError::Link { path: path.clone() }.to_string()),
            dir: path,
            kind,
            attack: None,
        }));
    }
    let digests: Vec<(String, String)> = found
        .iter()
        .filter(|listed| listed.kind == Kind::Attack)
        .filter_map(|listed| Some((listed.cell()?.digest(), listed.id())))
        .collect();
    for listed in &mut found {
        let digest = listed
            .cell()
            .and_then(|cell| cell.input(Input::Attack).ok());
        let attack = digest.and_then(|own| digests.iter().find(|(digest, _)| digest == own));
        listed.attack = attack.map(|(_, id)| id.clone());
    }
    found.retain(|listed| listed.fits(filter));
    Ok(found)
}

/// The list for people.
pub fn show(cells: &[Listed]) -> String {
    let percent = |ratio: Option<Ratio>| {
        let percent = ratio.and_then(Ratio::percent);
        percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent:.2}"))
    };
    let heads = [
        "id",
        "kind",
        "method",
        "dataset, network",
        "seed",
        "state",
        "ACC %",
        "ASR %",
        "attack",
    ];
    let mut rows = vec![heads.map(str::to_owned)];
    for cell in cells {
        let scores = cell.scores();
        rows.push([
            cell.id(),
            cell.kind.to_string(),
            cell.method(),
            cell.task(),
            cell.seed()
                .map_or_else(|| "-".to_owned(), |seed| seed.to_string()),
            cell.state.word().to_owned(),
            percent(scores.map(|s| s.acc)),
            percent(scores.map(|s| s.asr)),
            cell.attack.clone().unwrap_or_default(),
        ]);
    }
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        let line: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (field, width))| match column {
                4 | 6 | 7 => format!("{field:>width$}"),
                _ => format!("{field:<width$}"),
            })
            .collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
        let reason = i.checked_sub(1).and_then(|i| cells[i].reason());
        for line in reason.into_iter().flat_map(str::lines) {
            text.push_str("    ");
            text.push_str(&line.replace(char::is_control, " "));
            text.push('\n');
        }
    }
    text
}

/// The list for programs: one object on a line for each cell.
pub fn json_lines(cells: &[Listed]) -> String {
    let line = |cell: &Listed| {
        let scores = cell.scores();
        let object = json!({
            "id": cell.id(),
            "kind": cell.kind,
            "method": cell.method(),
            "task": cell.task(),
            "seed": cell.seed(),
            "state": cell.state.word(),
            "acc": scores.map(|s| s.acc),
            "asr": scores.map(|s| s.asr),
            "ra": scores.map(|s| s.ra),
            "attack": cell.attack,
            "reason": cell.reason(),
            "dir": cell.dir,
        });
        format!("{object}\n")
    };
    cells.iter().map(line).collect()
}
