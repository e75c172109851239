//! Runs what a grid asks for: all attacks, then all defenses, one after the other in this process.
//!
//! A cell that fails does not stop the others; the program then ends with the exit code of the worst failure.
//! A cell that is complete is verified and left alone, so running a grid again only does what is missing.
use std::collections::BTreeSet;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use bb_attack::AttackRequest;
use bb_core::artifact::atomic;
use bb_core::cell::Cell;
use bb_core::cli::{Failure, check_interrupt, exit};
use bb_core::events::Log;
use bb_defense::DefenseRequest;
use bb_nn::Compute;
use serde_json::Value;

use crate::collect;
use crate::plan::{State, Step, plan};
use crate::prepare::{Prepared, cache};
use crate::table::{Layout, Table, csv, latex, markdown, text};

/// What became of a grid.
pub struct Outcome {
    /// The table of everything that is complete.
    pub table: Table,
    /// How many cells were complete before, computed now, failed, and skipped because their attack failed.
    pub counts: Counts,
    /// The failed cells, each with its title.
    pub failures: Vec<(String, Failure)>,
}

/// How many cells went which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Complete before.
    pub found: usize,
    /// Computed now, in whole or from a checkpoint on.
    pub computed: usize,
    /// Failed.
    pub failed: usize,
    /// Not begun because their attack failed.
    pub skipped: usize,
}

/// Runs a grid on `compute` and writes `table.txt`, `table.md`, `table.csv` and `table.tex` into its folder.
///
/// # Errors
/// An interruption ends the run at once; everything that goes wrong with a single cell is in the [`Outcome`].
pub fn run(prepared: &Prepared, compute: &Compute, quiet: bool) -> Result<Outcome, Failure> {
    let log = Log::new(quiet);
    let mut steps = plan(prepared)?;
    // What is complete needs no training, so that any machine prints the table of a grid that has run.
    if steps.iter().any(|s| !matches!(s.state, State::Complete(_))) {
        compute.supports(prepared.grid.precision)?;
    }
    let mut counts = Counts::default();
    let mut failures: Vec<(String, Failure)> = Vec::new();
    let mut failed_attacks = BTreeSet::new();
    for i in 0..steps.len() {
        check_interrupt()?;
        let step = &steps[i];
        let title = step.title(prepared);
        if matches!(step.state, State::Complete(_)) {
            counts.found += 1;
            continue;
        }
        if step.defense.is_some() && failed_attacks.contains(&(step.attack, step.seed)) {
            counts.skipped += 1;
            continue;
        }
        log.info(
            "cell",
            &format!("[{}/{}] {title}", i + 1, steps.len()),
            &Value::Null,
        )?;
        let attack = steps.iter().find_map(|s| match &s.state {
            State::Complete(cell)
                if (s.attack, s.defense, s.seed) == (step.attack, None, step.seed) =>
            {
                Some(&**cell)
            }
            _ => None,
        });
        match one(prepared, step, attack, compute, quiet) {
            Ok((cell, found)) => {
                *(if found {
                    &mut counts.found
                } else {
                    &mut counts.computed
                }) += 1;
                steps[i].place = Some((cell.manifest.id.clone(), cell.dir.clone()));
                steps[i].state = State::Complete(Box::new(cell));
            }
            Err(failure) if matches!(failure.exit_code(), exit::INTERRUPTED | exit::TERMINATED) => {
                return Err(failure);
            }
            Err(failure) => {
                counts.failed += 1;
                if step.defense.is_none() {
                    failed_attacks.insert((step.attack, step.seed));
                }
                let report = failure.report(false);
                log.warn(
                    "failed",
                    &format!("{title} failed, the others go on\n{}", report.trim_end()),
                    &Value::Null,
                )?;
                failures.push((title, failure));
            }
        }
    }
    let table = collect::from_steps(prepared, &steps)?;
    write_tables(&prepared.out, &table)?;
    let Counts {
        found,
        computed,
        failed,
        skipped,
    } = counts;
    let mut say = format!(
        "{} cells: {found} complete before, {computed} computed",
        steps.len()
    );
    if failed > 0 {
        let _ = write!(say, ", {failed} failed, {skipped} skipped");
    }
    log.info("done", &say, &Value::Null)?;
    Ok(Outcome {
        table,
        counts,
        failures,
    })
}

/// Runs one cell; the second value says whether a defense was complete already.
///
/// A panic is a bug of one method, and no reason to lose the rest of a grid.
fn one(
    prepared: &Prepared,
    step: &Step,
    attack: Option<&Cell>,
    compute: &Compute,
    quiet: bool,
) -> Result<(Cell, bool), Failure> {
    let body = || match (step.defense, attack) {
        (None, _) => bb_attack::run(&attack_request(prepared, step, compute, quiet))
            .map(|c| (c, false))
            .map_err(Failure::from),
        (Some(defense), Some(attack)) => {
            // Now that the attack is complete, the cell of the defense has a name, and it may be there already.
            let dir = prepared
                .defense_spec(defense, attack, step.seed)
                .dir(&prepared.out);
            let found = dir.join(bb_core::cell::MANIFEST).exists();
            let request = defense_request(prepared, step, defense, attack, compute, quiet);
            let cell = bb_defense::run(&request)?;
            Ok((cell, found))
        }
        (Some(_), None) => Err(Failure::new(
            exit::BUG,
            "a defense was begun before its attack",
        )),
    };
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let words = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Failure::new(
            exit::BUG,
            format!("a bug: {}", words.unwrap_or("it panicked")),
        ))
    })
}

fn attack_request(
    prepared: &Prepared,
    step: &Step,
    compute: &Compute,
    quiet: bool,
) -> AttackRequest {
    let (attack, grid) = (&prepared.attacks[step.attack], &prepared.grid);
    AttackRequest {
        method: attack.attack.info().id.to_owned(),
        dataset: grid.dataset.clone(),
        data: prepared.data.clone(),
        train_limit: grid.train_limit,
        test_limit: grid.test_limit,
        test_split: grid.test_split.clone(),
        arch: grid.arch.clone(),
        width: grid.width,
        precision: grid.precision,
        compute: compute.clone(),
        given: attack.given.clone(),
        seed: step.seed,
        out: prepared.out.clone(),
        quiet,
    }
}

fn defense_request(
    prepared: &Prepared,
    step: &Step,
    defense: usize,
    attack: &Cell,
    compute: &Compute,
    quiet: bool,
) -> DefenseRequest {
    let defense = &prepared.defenses[defense];
    DefenseRequest {
        defense: defense.defense,
        model: attack.dir.clone(),
        data: prepared.data.clone(),
        given: defense.given.clone(),
        precision: prepared.grid.precision,
        compute: compute.clone(),
        seed: step.seed,
        out: prepared.out.clone(),
        cache: Some(cache(&prepared.out)),
        quiet,
    }
}

/// Writes the table in all formats, each file whole or not at all.
fn write_tables(out: &Path, table: &Table) -> Result<(), Failure> {
    let files = [
        ("table.txt", text::write(table, Layout::Long)),
        ("table.md", markdown::write(table, Layout::Long)),
        ("table.csv", csv::write(std::slice::from_ref(table))),
        ("table.tex", latex::write(table, Layout::Long)),
    ];
    for (name, text) in files {
        atomic::write(out.join(name), text.as_bytes())?;
    }
    Ok(())
}

impl Outcome {
    /// `Ok` if every cell is complete; otherwise one failure with the exit code of the worst one.
    pub fn into_result(self) -> Result<(), Failure> {
        // What another attempt may cure is the least evil, a bug the greatest.
        let rank = |code: u8| match code {
            exit::TRY_AGAIN => 0,
            exit::BUG => 255,
            code => code,
        };
        let Some((_, worst)) = self
            .failures
            .iter()
            .max_by_key(|(_, f)| rank(f.exit_code()))
        else {
            return Ok(());
        };
        let code = worst.exit_code();
        let mut message = format!("{} of the grid's cells failed", self.failures.len());
        for (title, failure) in &self.failures {
            let _ = write!(message, "\n  {title}: {failure}");
        }
        let hint = "the same command again does only what is missing";
        Err(Failure::new(code, message).hint(hint))
    }
}
