//! What a grid asks for, and how much of it is there.
use std::fmt::Write;
use std::path::{Path, PathBuf};

use bb_core::cell::contract::Compute;
use bb_core::cell::{Cell, CellSpec, Failed, Kind, MANIFEST};
use bb_core::cli::{Coded, Failure};
use bb_core::metrics;
use serde_json::json;

use crate::collect::spent;
use crate::prepare::{Prepared, PreparedAttack};
use crate::table::duration;

/// How much of a cell is there.
#[derive(Debug, Clone)]
pub enum State {
    /// All of it, verified.
    Complete(Box<Cell>),
    /// It was begun, or is being computed; a run goes on from its last checkpoint.
    Partial,
    /// The last run failed for good; only a run that is told to try again computes it.
    Failed {
        /// The exit code of that run.
        code: u8,
        /// Why it failed, on one line.
        reason: String,
        /// When it was, as RFC 3339; `None` if the record of the failure is damaged.
        time: Option<String>,
    },
    /// Nothing.
    Missing,
    /// It has a manifest, but something is wrong with it.
    Damaged(String),
}

impl State {
    /// The word of the plan.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Complete(_) => "complete",
            Self::Partial => "partial",
            Self::Failed { .. } => "failed",
            Self::Missing => "missing",
            Self::Damaged(_) => "damaged",
        }
    }

    /// That the last run of the cell in this folder failed for good, if it did.
    ///
    /// A record that cannot be read still says that there was a failure.
    pub(crate) fn failed(dir: &Path) -> Option<Self> {
        match Failed::read(dir) {
            Ok(failed) => failed.map(|failed| Self::Failed {
                code: failed.exit_code,
                reason: failed.message,
                time: Some(failed.time),
            }),
            Err(error) => Some(Self::Failed {
                code: error.exit_code(),
                reason: error.to_string(),
                time: None,
            }),
        }
    }

    /// How much there is of the cell in this folder.
    pub(crate) fn of(dir: &Path) -> Self {
        if dir.join(MANIFEST).exists() {
            return match Cell::load(dir) {
                Ok(cell) => Self::Complete(Box::new(cell)),
                Err(error) => Self::Damaged(error.to_string()),
            };
        }
        if let Some(failed) = Self::failed(dir) {
            return failed;
        }
        if dir.is_dir() {
            Self::Partial
        } else {
            Self::Missing
        }
    }
}

/// One cell of a grid.
#[derive(Debug, Clone)]
pub struct Step {
    /// What it is a result of.
    pub kind: Kind,
    /// Index of the attack in the grid.
    pub attack: usize,
    /// Index of the defense in the grid; `None` for the attack itself.
    pub defense: Option<usize>,
    /// The seed.
    pub seed: u64,
    /// How much is there.
    pub state: State,
    /// The revision of an earlier version of the method, whose complete cell is there in place of this one.
    pub older: Option<u32>,
    /// Id and folder; `None` for a defense whose attack is not complete, because they follow from its result.
    pub place: Option<(String, PathBuf)>,
}

impl Step {
    /// The cell, if it is complete.
    pub fn cell(&self) -> Option<&Cell> {
        match &self.state {
            State::Complete(cell) => Some(cell),
            _ => None,
        }
    }

    /// What it is, for people: `BadNets, seed 0` or `TSBD on BadNets, seed 0`.
    pub fn title(&self, prepared: &Prepared) -> String {
        let attack = &prepared.attacks[self.attack].label;
        match self.defense {
            None => format!("{attack}, seed {}", self.seed),
            Some(defense) => format!(
                "{} on {attack}, seed {}",
                prepared.defenses[defense].label, self.seed
            ),
        }
    }
}

/// The cells of a grid in the order in which they run: all attacks, then all defenses.
pub fn plan(prepared: &Prepared) -> Result<Vec<Step>, Failure> {
    let step = |attack, defense: Option<usize>, seed| Step {
        kind: defense.map_or(Kind::Attack, |_| Kind::Defense),
        attack,
        defense,
        seed,
        state: State::Missing,
        older: None,
        place: None,
    };
    let (mut attacks, mut defenses) = (Vec::new(), Vec::new());
    for attack in 0..prepared.attacks.len() {
        for &seed in &prepared.grid.seeds {
            attacks.push(step(attack, None, seed));
            let all = 0..prepared.defenses.len();
            defenses.extend(all.map(|defense| step(attack, Some(defense), seed)));
        }
    }
    attacks.extend(defenses);
    look_again(prepared, &mut attacks)?;
    Ok(attacks)
}

/// Finds out how much there is now of the cells that are not complete; a complete one stays so.
pub(crate) fn look_again(prepared: &Prepared, steps: &mut [Step]) -> Result<(), Failure> {
    for i in 0..steps.len() {
        let step = &steps[i];
        if step.cell().is_some() {
            continue;
        }
        if let Some((_, dir)) = &step.place {
            steps[i].state = State::of(dir);
            continue;
        }
        let spec = match step.defense {
            None => Some(prepared.attack_spec(step.attack, step.seed)?),
            // The attacks stand before their defenses.
            Some(defense) => attack_of(steps, step)
                .and_then(|attack| steps[attack].cell())
                .map(|cell| prepared.defense_spec(defense, cell, step.seed)),
        };
        if let Some(spec) = spec {
            let dir = spec.dir(&prepared.out);
            steps[i].state = State::of(&dir);
            if matches!(steps[i].state, State::Missing) {
                steps[i].older = older(&prepared.out, &spec);
            }
            steps[i].place = Some((spec.id(), dir));
        }
    }
    Ok(())
}

/// The place of the attack that a step needs: that of a defense, and of an attack its own.
pub(crate) fn attack_of(steps: &[Step], step: &Step) -> Option<usize> {
    let wanted = (step.attack, None, step.seed);
    steps
        .iter()
        .position(|other| (other.attack, other.defense, other.seed) == wanted)
}

/// The last revision before that of `spec` of which there is a complete cell.
fn older(out: &Path, spec: &CellSpec) -> Option<u32> {
    let compute = Compute::of(&spec.settings);
    let is_there = |revision: &u32| {
        let mut spec = spec.clone();
        let revision = *revision;
        spec.settings["compute"] = json!(Compute {
            revision,
            ..compute
        });
        spec.dir(out).join(MANIFEST).exists()
    };
    (0..compute.revision).rev().find(is_there)
}

/// How long what is left of a plan will take, by the times of the cells that are complete.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Left {
    /// Seconds, of the cells that can be told.
    pub seconds: f64,
    /// How many these are.
    pub told: usize,
    /// Cells of which nothing like them is complete.
    pub untold: usize,
}

impl Left {
    /// The time of one cell is the mean of the same attack, or defense, with other seeds or on other attacks; of an attack
    /// that was never trained that of all attacks.
    pub fn of<'a>(steps: impl Iterator<Item = &'a Step> + Clone) -> Self {
        let times: Vec<(&Step, f64)> = steps
            .clone()
            .filter_map(|step| Some((step, spent(step.cell()?).0?)))
            .collect();
        let mean = |like: &dyn Fn(&Step) -> bool| {
            let of = times.iter().filter(|(step, _)| like(step));
            metrics::mean(&of.map(|(_, seconds)| *seconds).collect::<Vec<_>>())
        };
        let one = |step: &Step| match step.defense {
            Some(_) => mean(&|other| other.defense == step.defense),
            None => mean(&|other| (other.attack, other.defense) == (step.attack, None))
                .or_else(|| mean(&|other| other.defense.is_none())),
        };
        let mut left = Self {
            seconds: 0.0,
            told: 0,
            untold: 0,
        };
        for step in steps {
            if matches!(step.state, State::Missing | State::Partial) {
                match one(step) {
                    Some(seconds) => {
                        left.seconds += seconds;
                        left.told += 1;
                    }
                    None => left.untold += 1,
                }
            }
        }
        left
    }

    /// `about 2 h 05 min for 24 cells`, and of how many nothing can be said; nothing if it is under a minute.
    pub fn say(self) -> Option<String> {
        if self.seconds < 60.0 {
            return None;
        }
        let (time, cells) = (duration(self.seconds), counted(self.told));
        let mut say = format!("about {time} for {cells}, by the times of those that are complete");
        if self.untold > 0 {
            let _ = write!(say, "; nothing is known of {}", counted(self.untold));
        }
        Some(say)
    }
}

fn counted(cells: usize) -> String {
    match cells {
        1 => "one cell".to_owned(),
        n => format!("{n} cells"),
    }
}

/// What the paper of a grid has and the grid has not, one line each for attacks and defenses; nothing if that is nothing.
pub fn lacking(prepared: &Prepared) -> String {
    let paper = &prepared.paper;
    let attacks: Vec<&str> = prepared
        .attacks
        .iter()
        .map(PreparedAttack::method)
        .collect();
    let defenses = prepared.defenses.iter().map(|d| d.defense.info().id);
    let mut text = String::new();
    for (kind, ours) in [(Kind::Attack, attacks), (Kind::Defense, defenses.collect())] {
        let others = paper.others(kind, &ours).join(", ");
        // Only a grid that names its paper is meant to be that paper's.
        if prepared.grid.paper.is_some() && !others.is_empty() {
            let _ = writeln!(
                text,
                "not in this grid, of the {kind}s of {}: {others}",
                paper.short
            );
        }
    }
    text
}

/// The plan for people: one line per cell, then the sums.
pub fn show(prepared: &Prepared, steps: &[Step]) -> String {
    let mut text = String::new();
    let titles: Vec<String> = steps.iter().map(|s| s.title(prepared)).collect();
    let width = titles.iter().map(|t| t.chars().count()).max().unwrap_or(0);
    for (i, (step, title)) in steps.iter().zip(&titles).enumerate() {
        let id = step
            .place
            .as_ref()
            .map_or("- (known when its attack is complete)", |(id, _)| id);
        let _ = writeln!(
            text,
            "{:>3}  {:<8}  {:<7}  {title:<width$}  {id}",
            i + 1,
            step.state.word(),
            step.kind.as_str()
        );
        if let Some(revision) = step.older {
            let _ = writeln!(
                text,
                "     revision {revision} of it is there, which an earlier version computed otherwise"
            );
        }
        match &step.state {
            State::Damaged(reason)
            | State::Failed {
                reason, time: None, ..
            } => {
                let _ = writeln!(text, "     {reason}");
            }
            State::Failed {
                code,
                reason,
                time: Some(time),
            } => {
                let _ = writeln!(text, "     {reason} (exit code {code}, {time})");
            }
            _ => {}
        }
    }
    let count = |word: &str| steps.iter().filter(|s| s.state.word() == word).count();
    let _ = write!(
        text,
        "{} cells in {}: ",
        steps.len(),
        prepared.out.display()
    );
    let _ = write!(
        text,
        "{} complete, {} partial, {} missing",
        count("complete"),
        count("partial"),
        count("missing")
    );
    for word in ["failed", "damaged"] {
        if count(word) > 0 {
            let _ = write!(text, ", {} {word}", count(word));
        }
    }
    text.push('\n');
    if let Some(say) = Left::of(steps.iter()).say() {
        let _ = writeln!(text, "left: {say}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_said_with_what_it_is_known_of() {
        let say = |seconds, told, untold| {
            Left {
                seconds,
                told,
                untold,
            }
            .say()
        };
        assert_eq!(say(0.0, 0, 7), None);
        assert_eq!(say(59.0, 2, 0), None);
        let expect = "about 2 h 05 min for 24 cells, by the times of those that are complete";
        assert_eq!(say(7500.0, 24, 0).as_deref(), Some(expect));
        let expect = "about 1 min 00 s for one cell, by the times of those that are complete; nothing is known of 2 cells";
        assert_eq!(say(60.0, 1, 2).as_deref(), Some(expect));
    }
}
