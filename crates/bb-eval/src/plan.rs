//! What a grid asks for, and how much of it is there.
use std::fmt::Write;
use std::path::{Path, PathBuf};

use bb_core::cell::{Cell, CellSpec, Failed, Kind, MANIFEST};
use bb_core::cli::{Coded, Failure};

use crate::prepare::Prepared;

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

    fn of(dir: &Path) -> Self {
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
        let place = match (&step.place, step.defense) {
            (Some(place), _) => Some(place.clone()),
            (None, None) => Some(place(
                prepared,
                &prepared.attack_spec(step.attack, step.seed)?,
            )),
            // The attacks stand before their defenses.
            (None, Some(defense)) => attack_of(steps, step)
                .and_then(|attack| steps[attack].cell())
                .map(|cell| place(prepared, &prepared.defense_spec(defense, cell, step.seed))),
        };
        if let Some((_, dir)) = &place {
            steps[i].state = State::of(dir);
            steps[i].place = place;
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

/// Id and folder of a cell.
fn place(prepared: &Prepared, spec: &CellSpec) -> (String, PathBuf) {
    (spec.id(), spec.dir(&prepared.out))
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
    text
}
