//! What a grid asks for, and how much of it is there.
use std::fmt::Write;
use std::path::PathBuf;

use bb_core::cell::{Cell, CellSpec, Kind, MANIFEST};
use bb_core::cli::Failure;

use crate::prepare::Prepared;

/// How much of a cell is there.
#[derive(Debug, Clone)]
pub enum State {
    /// All of it, verified.
    Complete(Box<Cell>),
    /// It was begun; a run goes on from its last checkpoint.
    Partial,
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
            Self::Missing => "missing",
            Self::Damaged(_) => "damaged",
        }
    }

    fn of(dir: &PathBuf) -> Self {
        if dir.join(MANIFEST).exists() {
            return match Cell::load(dir) {
                Ok(cell) => Self::Complete(Box::new(cell)),
                Err(error) => Self::Damaged(error.to_string()),
            };
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
    let mut attacks = Vec::new();
    let mut defenses = Vec::new();
    for attack in 0..prepared.attacks.len() {
        for &seed in &prepared.grid.seeds {
            let (place, state) = look(prepared, &prepared.attack_spec(attack, seed)?);
            for defense in 0..prepared.defenses.len() {
                let (place, state) = match &state {
                    State::Complete(cell) => {
                        let (place, state) =
                            look(prepared, &prepared.defense_spec(defense, cell, seed));
                        (Some(place), state)
                    }
                    _ => (None, State::Missing),
                };
                defenses.push(Step {
                    kind: Kind::Defense,
                    attack,
                    defense: Some(defense),
                    seed,
                    state,
                    place,
                });
            }
            attacks.push(Step {
                kind: Kind::Attack,
                attack,
                defense: None,
                seed,
                state,
                place: Some(place),
            });
        }
    }
    attacks.extend(defenses);
    Ok(attacks)
}

fn look(prepared: &Prepared, spec: &CellSpec) -> ((String, PathBuf), State) {
    let dir = spec.dir(&prepared.out);
    let state = State::of(&dir);
    ((spec.id(), dir), state)
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
        if let State::Damaged(reason) = &step.state {
            let _ = writeln!(text, "     {reason}");
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
    if count("damaged") > 0 {
        let _ = write!(text, ", {} damaged", count("damaged"));
    }
    text.push('\n');
    text
}
