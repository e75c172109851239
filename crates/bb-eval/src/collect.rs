//! From complete cells to the input of a table.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use bb_attack::results::AttackResults;
use bb_core::cell::contract::{self, Network};
use bb_core::cell::env::Env;
use bb_core::cell::store::Folders;
use bb_core::cell::{Cell, CellError, Kind, LOG, canonical_json};
use bb_core::cli::{Coded, exit};
use bb_core::data::{self, NamedClass};
use bb_core::files::{self, Links};
use bb_core::json;
use bb_core::precision::Precision;
use bb_defense::method::AnyDefense;
use bb_defense::results::Results;
use serde_json::{Value, json};

use crate::leaves::leaves;
use crate::paper::profile::Own;
use crate::paper::{Facts, Paper, RepairFacts};
use crate::plan::{State, Step};
use crate::prepare::Prepared;
use crate::table::{
    AttackRow, DEFAULT_ASR_FLOOR, Damage, DefenseColumn, Input, Observation, Role, Selection,
    SelectionError, Table, oracle_label,
};

/// Why cells cannot be made into a table.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CollectError {
    /// A folder cannot be listed; the source names it.
    #[error(transparent)]
    Read(#[from] std::io::Error),
    /// There is no complete attack.
    #[error("`{}` holds no complete result of an attack{}", path.display(), instead(unusable, *defenses))]
    Empty {
        /// The folder.
        path: PathBuf,
        /// The cells that are there and cannot be shown, one line each.
        unusable: Unusable,
        /// Complete results of defenses.
        defenses: usize,
    },
    /// A manifest does not say what was measured.
    #[error(transparent)]
    Cell(#[from] CellError),
    /// What is to be shown is not there.
    #[error(transparent)]
    Selection(#[from] SelectionError),
}

impl Coded for CollectError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Read(error) => error.exit_code(),
            Self::Empty { .. } => exit::INPUT,
            Self::Cell(error) => error.exit_code(),
            Self::Selection(error) => error.exit_code(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Empty {
                unusable, defenses, ..
            } => Some(
                if !unusable.damaged.is_empty() {
                    "a cell was changed after it was complete; remove its folder to have it made again"
                } else if *defenses > 0 {
                    "the attacks that were repaired have to lie in the same folder of results"
                } else {
                    "give the `--store` folder of `bb-eval run` or of `bb-attack`, which has its cells as `attack/METHOD/DATASET-NETWORK/ID`"
                }
                .to_owned(),
            ),
            _ => None,
        }
    }
}

/// What there is where no attack is complete.
fn instead(unusable: &Unusable, defenses: usize) -> String {
    let mut text = match defenses {
        0 => String::new(),
        1 => ", only one of a defense".to_owned(),
        _ => format!(", only {defenses} of defenses"),
    };
    for line in unusable.lines() {
        let _ = write!(text, "\n  {line}");
    }
    text
}

/// Cells of a folder that are there and cannot be shown: what is wrong with each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unusable {
    /// Those with a manifest.
    pub damaged: Vec<String>,
    /// Those whose last run failed for good.
    pub failed: Vec<String>,
}

impl Unusable {
    fn lines(&self) -> impl Iterator<Item = String> {
        let damaged = self.damaged.iter().map(|why| format!("damaged: {why}"));
        damaged.chain(self.failed.iter().map(|why| format!("failed: {why}")))
    }
}

/// How long the run took that completed the cell, and how much memory in KiB, if its records say so; they are no part of
/// the result.
pub fn spent(cell: &Cell) -> (Option<f64>, Option<u64>) {
    let env = Env::read(cell).unwrap_or_default();
    let seconds = env.seconds.or_else(|| {
        // The attacks of earlier versions say it in the log.
        let log = end_of(&cell.file(LOG)).ok()?;
        let row = |line: &[u8]| {
            json::from_slice::<Value>(line, MOST_VALUES).ok()?["data"]["seconds"].as_f64()
        };
        log.rsplit(|&byte| byte == b'\n').find_map(row)
    });
    (seconds, env.peak_kib)
}

/// Most bytes of the end of a log that are looked at; it is not verified, and anybody may have written it.
const LONGEST: u64 = 64 << 10;
/// Most values of a row of a log.
const MOST_VALUES: usize = 1000;

/// The last bytes of a file of a cell.
fn end_of(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = files::open(path, Links::Refuse)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LONGEST)))?;
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What the table compares with a paper's setting.
pub fn facts(cell: &Cell, paper: &Paper) -> Facts {
    let settings = &cell.manifest.settings;
    // What a stranger's manifest does not say is unlike any paper's setting.
    let network = cell.network().ok();
    let limits = cell.limits().unwrap_or_default();
    Facts {
        dataset: cell.manifest.dataset.clone(),
        width: network.as_ref().map_or(0, |network| network.width),
        arch: network.map(|network| network.arch).unwrap_or_default(),
        precision: cell.compute().precision.name().to_owned(),
        ratio: settings["ratio"].as_f64().or_else(|| imported_ratio(cell)),
        label: settings["label"].as_str().map(str::to_owned),
        epochs: settings["train"]["epochs"].as_u64(),
        train_limit: limits.train_limit,
        test_limit: limits.test_limit,
        unlike: unlike_attack(cell, paper),
    }
}

/// The share of the training images that a record holds as poisoned ones, to three digits, since the benchmark rounds their
/// number; `None` where it holds none of them, as of attacks that poison in the training loop.
fn imported_ratio(cell: &Cell) -> Option<f64> {
    let results = AttackResults::of(cell).ok()?;
    let poisoned = Some(results.poison.train).filter(|n| *n > 0)?;
    let all = Some(results.images?.train).filter(|n| *n > 0)?;
    format!("{:.2e}", poisoned as f64 / all as f64).parse().ok()
}

/// The class that poisoned images are to be given, where there is one and the manifest names it.
fn target(cell: &Cell) -> Option<NamedClass> {
    AttackResults::of(cell).ok()?.target
}

/// What the table compares with a paper's setting, of a defense with these settings.
fn repair_facts(
    defense: Option<&dyn AnyDefense>,
    own: Own<'_>,
    precision: &str,
    paper: &Paper,
) -> RepairFacts {
    // Who repaired a network elsewhere may have done it in any way, whatever the defense is called.
    let defense = defense.filter(|_| !contract::is_imported(own.settings));
    let unlike = defense.and_then(|defense| {
        let published = paper.profile.method(Kind::Defense, defense.info().id);
        let given = bb_defense::method::Given {
            set: published.given(own.dataset, own.arch),
            ..Default::default()
        };
        let expected = defense.resolve(own.dataset, &given).ok()?;
        Some(published.differences(own, expected.tree(), &["clean.ratio"]))
    });
    RepairFacts {
        precision: precision.to_owned(),
        clean_ratio: own.settings["clean"]["ratio"].as_f64(),
        unlike,
    }
}

/// What was done otherwise than for the published attack; `None` if nothing is known of a cell's settings.
fn unlike_attack(cell: &Cell, paper: &Paper) -> Option<Vec<String>> {
    let manifest = &cell.manifest;
    // Who published a network may have trained it in any way, whatever the attack is called.
    if cell.is_imported() {
        return None;
    }
    let own = own(cell);
    let published = paper.profile.method(Kind::Attack, &manifest.method);
    let given = bb_attack::method::Given {
        set: published.given(own.dataset, own.arch),
        ..Default::default()
    };
    let attack = bb_attack::registry::find(&manifest.method).ok()?;
    let expected = attack.resolve(own.dataset, &given).ok()?;
    let compared = ["ratio", "label", "train.epochs"];
    Some(published.differences(own, expected.tree(), &compared))
}

/// What a paper's profile looks at.
fn own(cell: &Cell) -> Own<'_> {
    let manifest = &cell.manifest;
    Own {
        settings: &manifest.settings,
        digests: &manifest.inputs,
        dataset: &manifest.dataset,
        arch: Network::arch_of(&manifest.settings).unwrap_or_default(),
    }
}

/// The table of a grid, from the complete cells among its steps.
pub fn from_steps(
    prepared: &Prepared,
    steps: &[Step],
    paper: &Paper,
    selection: &Selection,
) -> Result<Table, CollectError> {
    let mut defenses = vec![DefenseColumn::undefended()];
    let grid = &prepared.grid;
    // No setting of a defense names a file whose content is part of its cell.
    let none = BTreeMap::new();
    for prepared in &prepared.defenses {
        defenses.push(DefenseColumn {
            method: prepared.defense.info().id.to_owned(),
            label: prepared.label.clone(),
            role: Role::Defended,
            facts: Some(repair_facts(
                Some(prepared.defense),
                Own {
                    settings: prepared.settings(),
                    digests: &none,
                    dataset: &grid.dataset,
                    arch: &grid.arch,
                },
                grid.precision.name(),
                paper,
            )),
        });
    }
    let mut gathered = Gathered::default();
    let (mut damaged, mut failed) = (Vec::new(), Vec::new());
    let mut facts_of = BTreeMap::new();
    for step in steps {
        let damage = |reason: &String| Damage {
            attack: step.attack,
            defense: step.defense.map_or(0, |defense| 1 + defense),
            seed: step.seed,
            reason: reason.clone(),
        };
        let cell = match &step.state {
            State::Complete(cell) => cell,
            State::Damaged(reason) => {
                damaged.push(damage(reason));
                continue;
            }
            State::Failed { reason, .. } => {
                failed.push(damage(reason));
                continue;
            }
            State::Partial | State::Missing => continue,
        };
        match step.defense {
            None => {
                let known = || (facts(cell, paper), target(cell));
                facts_of.entry(step.attack).or_insert_with(known);
                gathered.attack(step.attack, step.seed, cell)?;
            }
            Some(defense) => gathered.defense(step.attack, 1 + defense, step.seed, cell)?,
        }
    }
    let own = prepared.arch.label();
    let attacks = prepared.attacks.iter().enumerate().map(|(i, attack)| {
        let (facts, target) = facts_of.remove(&i).unwrap_or_default();
        AttackRow {
            method: attack.method().to_owned(),
            label: attack.label.clone(),
            facts,
            target,
            arch: attack
                .network()
                .filter(|arch| *arch != own)
                .map(str::to_owned),
        }
    });
    let mut input = Input {
        title: title(
            &grid.dataset,
            &prepared.arch.label(),
            grid.train_limit,
            grid.test_limit,
            &BTreeSet::from([grid.precision.name()]),
            &gathered.seeds(&grid.seeds),
        ),
        dataset: grid.dataset.clone(),
        arch: prepared.arch.label(),
        data: prepared.dataset.digest.clone(),
        attacks: attacks.collect(),
        defenses,
        seeds: grid.seeds.clone(),
        observations: gathered.observations,
        damaged,
        failed,
        paper: Some(paper.clone()),
        classes: Some(prepared.dataset.spec.classes),
        asr_floor: grid.asr_floor,
    };
    if !grid.name.is_empty() {
        input.title = format!("{}: {}", grid.name, input.title);
    }
    add_oracles(&mut input, &gathered.oracles);
    input.select(selection)?;
    Ok(Table::new(&input))
}

/// The tables of a folder of results: one per dataset and network, of everything that is complete there.
///
/// Damaged cells are left out and named, below the table or, for CSV, by whoever prints it.
pub fn from_folder(
    out: &Path,
    extra: &[&'static dyn AnyDefense],
    paper: &Paper,
    selection: &Selection,
) -> Result<Vec<Table>, CollectError> {
    let mut unusable = Unusable::default();
    let attacks = cells(out, Kind::Attack, &mut unusable)?;
    let defenses = cells(out, Kind::Defense, &mut unusable)?;
    let mut groups = BTreeMap::<(String, String, String), Vec<&Cell>>::new();
    for cell in &attacks {
        groups.entry(group(cell)).or_default().push(cell);
    }
    if groups.is_empty() {
        return Err(CollectError::Empty {
            path: out.to_owned(),
            unusable,
            defenses: defenses.len(),
        });
    }
    let mut left_out: Vec<String> = unusable.lines().collect();
    let (mut tables, mut lacking) = (Vec::new(), None);
    for ((dataset, arch, data), attacks) in &groups {
        let key = (dataset.clone(), arch.clone(), data.clone());
        let defenses: Vec<&Cell> = defenses.iter().filter(|c| group(c) == key).collect();
        let mut input = folder_input(attacks, &defenses, extra, paper, &mut left_out)?;
        let limits = facts(attacks[0], paper);
        let (train, test) = (limits.train_limit, limits.test_limit);
        let precisions = attacks
            .iter()
            .chain(&defenses)
            .map(|c| c.compute().precision.name());
        let precisions = precisions.collect();
        input.title = title(dataset, arch, train, test, &precisions, &input.seeds);
        (input.dataset, input.arch, input.data) = key;
        // What one table lacks another one may have.
        match input.select(selection) {
            Ok(()) => tables.push(Table::new(&input)),
            Err(error) => lacking = Some(error),
        }
    }
    if let Some(error) = lacking.filter(|_| tables.is_empty()) {
        return Err(error.into());
    }
    if let Some(last) = tables.last_mut() {
        last.left_out.extend(left_out);
    }
    Ok(tables)
}

fn folder_input(
    attacks: &[&Cell],
    defenses: &[&Cell],
    extra: &[&'static dyn AnyDefense],
    paper: &Paper,
    left_out: &mut Vec<String>,
) -> Result<Input, CollectError> {
    let attack_title = |id: &str| {
        bb_attack::registry::find(id).map_or_else(|_| id.to_owned(), |a| a.info().title.to_owned())
    };
    let defense_title = |id: &str| {
        bb_defense::registry::find(id, extra)
            .map_or_else(|_| id.to_owned(), |d| d.info().title.to_owned())
    };
    let (rows, row_of) = variants(attacks, attack_title);
    let (columns, column_of) = variants(defenses, defense_title);
    let mut gathered = Gathered::default();
    // A defense names its attack by digest.
    let mut by_digest = BTreeMap::new();
    for (cell, &row) in attacks.iter().zip(&row_of) {
        by_digest.insert(cell.digest(), (row, cell.manifest.seed));
        gathered.attack(row, cell.manifest.seed, cell)?;
    }
    for (cell, &column) in defenses.iter().zip(&column_of) {
        let attack = cell
            .manifest
            .inputs
            .get(contract::Input::Attack.name())
            .and_then(|digest| by_digest.get(digest));
        // The attack may lie elsewhere; then there is no row for its defense.
        let Some(&(row, seed)) = attack else {
            left_out.push(format!(
                "left out: the attack that `{}` repairs is not in this folder",
                cell.dir.display()
            ));
            continue;
        };
        gathered.defense(row, 1 + column, seed, cell)?;
    }
    let seeds: BTreeSet<u64> = attacks.iter().map(|c| c.manifest.seed).collect();
    let mut input = Input {
        attacks: rows
            .into_iter()
            .map(|(cell, label)| AttackRow {
                method: cell.manifest.method.clone(),
                label,
                facts: facts(cell, paper),
                target: target(cell),
                arch: None,
            })
            .collect(),
        defenses: vec![DefenseColumn::undefended()],
        seeds: seeds.into_iter().collect(),
        observations: gathered.observations,
        paper: Some(paper.clone()),
        classes: classes(attacks[0]),
        asr_floor: DEFAULT_ASR_FLOOR,
        ..Input::default()
    };
    input
        .defenses
        .extend(columns.into_iter().map(|(cell, label)| {
            let method = &cell.manifest.method;
            let defense = bb_defense::registry::find(method, extra).ok();
            DefenseColumn {
                method: method.clone(),
                label,
                role: Role::Defended,
                facts: Some(repair_facts(
                    defense,
                    own(cell),
                    cell.compute().precision.name(),
                    paper,
                )),
            }
        }));
    add_oracles(&mut input, &gathered.oracles);
    Ok(input)
}

/// How many classes a cell's network tells apart, as far as that is known.
fn classes(cell: &Cell) -> Option<usize> {
    let own = cell.network().ok().and_then(|network| network.classes);
    let known = || data::spec(&cell.manifest.dataset).ok().map(|s| s.classes);
    own.or_else(known)
}

/// What is shown in one table: dataset, network, and the very same data.
fn group(cell: &Cell) -> (String, String, String) {
    let manifest = &cell.manifest;
    let data = cell
        .input(contract::Input::Dataset)
        .unwrap_or_default()
        .to_owned();
    (manifest.dataset.clone(), manifest.arch.clone(), data)
}

/// Puts an oracle beside each defense that has one.
fn add_oracles(input: &mut Input, oracles: &[Observation]) {
    let with: BTreeSet<usize> = oracles.iter().map(|o| o.defense).collect();
    // From the last one on, so that the indices before it stay right.
    for &defense in with.iter().rev() {
        let plain = &input.defenses[defense];
        let oracle = DefenseColumn {
            label: oracle_label(&plain.label),
            role: Role::Oracle,
            ..plain.clone()
        };
        input.defenses.insert(defense + 1, oracle);
        for o in input
            .observations
            .iter_mut()
            .filter(|o| o.defense > defense)
        {
            o.defense += 1;
        }
        let own = oracles.iter().filter(|o| o.defense == defense).cloned();
        input.observations.extend(own.map(|o| Observation {
            defense: defense + 1,
            ..o
        }));
    }
}

/// What was measured, with the oracles apart.
#[derive(Default)]
struct Gathered {
    observations: Vec<Observation>,
    oracles: Vec<Observation>,
}

impl Gathered {
    /// Those of the given seeds that something was measured with.
    fn seeds(&self, wanted: &[u64]) -> Vec<u64> {
        let with = |seed: &&u64| self.observations.iter().any(|o| o.seed == **seed);
        wanted.iter().filter(with).copied().collect()
    }

    fn attack(&mut self, attack: usize, seed: u64, cell: &Cell) -> Result<(), CollectError> {
        let scores = AttackResults::of(cell)?.scores();
        let (seconds, peak_kib) = spent(cell);
        self.observations.push(Observation {
            attack,
            defense: 0,
            seed,
            scores,
            before: None,
            seconds,
            peak_kib,
        });
        Ok(())
    }

    fn defense(
        &mut self,
        attack: usize,
        defense: usize,
        seed: u64,
        cell: &Cell,
    ) -> Result<(), CollectError> {
        let results: Results = cell.results()?;
        let before = Some(results.before);
        let (seconds, peak_kib) = spent(cell);
        self.observations.push(Observation {
            attack,
            defense,
            seed,
            scores: results.after,
            before,
            seconds,
            peak_kib,
        });
        if let Some(oracle) = results.oracle {
            self.oracles.push(Observation {
                attack,
                defense,
                seed,
                scores: oracle.scores,
                before,
                seconds: None,
                peak_kib: None,
            });
        }
        Ok(())
    }
}

/// The distinct settings among the cells, each with a cell and a unique label, and for each cell which one it has.
///
/// Where a method is there with several settings, the label names the settings that differ.
fn variants<'a>(
    cells: &[&'a Cell],
    title: impl Fn(&str) -> String,
) -> (Vec<(&'a Cell, String)>, Vec<usize>) {
    let settings = |cell: &Cell| {
        let mut settings = cell.manifest.settings.clone();
        if let Value::Object(table) = &mut settings {
            table
                .entry("compute")
                .or_insert_with(|| json!({ "precision": cell.compute().precision.name() }));
        }
        settings
    };
    let key = |cell: &Cell| {
        // Equal settings of another file, such as an imported checkpoint, are another variant. The other inputs are those
        // that the table is about, or follow from settings.
        let mut files = cell.manifest.inputs.clone();
        files.retain(|name, _| {
            contract::Input::ALL
                .iter()
                .all(|input| input.name() != name)
        });
        (
            cell.manifest.method.clone(),
            canonical_json(&settings(cell)),
            files,
        )
    };
    let mut found: Vec<&'a Cell> = Vec::new();
    let mut which = Vec::new();
    for cell in cells {
        let known = found.iter().position(|other| key(other) == key(cell));
        which.push(known.unwrap_or_else(|| {
            found.push(cell);
            found.len() - 1
        }));
    }
    let leaves: Vec<BTreeMap<String, String>> =
        found.iter().map(|cell| leaves(&settings(cell))).collect();
    let mut labels: Vec<String> = Vec::new();
    for (i, cell) in found.iter().enumerate() {
        let method = &cell.manifest.method;
        let same: Vec<usize> = (0..found.len())
            .filter(|j| found[*j].manifest.method == *method)
            .collect();
        let differing: Vec<String> = leaves[i]
            .iter()
            .filter(|(key, value)| same.iter().any(|j| leaves[*j].get(*key) != Some(*value)))
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let mut label = title(method);
        if !differing.is_empty() {
            label = format!("{label} ({})", differing.join(", "));
        }
        // Settings of the same name in one and not in the other leave nothing to tell them apart.
        if labels.contains(&label) {
            label = format!("{label} #{}", cell.manifest.id);
        }
        labels.push(label);
    }
    (found.into_iter().zip(labels).collect(), which)
}

/// All complete cells of a kind, by path; what is wrong with the others is added to `unusable`.
fn cells(out: &Path, kind: Kind, unusable: &mut Unusable) -> Result<Vec<Cell>, CollectError> {
    let folders = Folders::of(out, kind)?;
    let links = folders.links.into_iter();
    let links = links.map(|path| CellError::Link { path }.to_string());
    unusable.damaged.extend(links);
    let mut cells = Vec::new();
    for folder in folders.cells {
        match State::of(&folder) {
            State::Complete(cell) => cells.push(*cell),
            State::Damaged(reason) => unusable.damaged.push(reason),
            State::Failed { reason, .. } => {
                let reason = format!("`{}`: {reason}", folder.display());
                unusable.failed.push(reason);
            }
            State::Partial | State::Missing => {}
        }
    }
    Ok(cells)
}

/// `CIFAR-10, preactresnet18-w64, seed 0`; a precision is named unless all is `f32`.
fn title(
    dataset: &str,
    arch: &str,
    train: Option<usize>,
    test: Option<usize>,
    precisions: &BTreeSet<&str>,
    seeds: &[u64],
) -> String {
    let dataset =
        data::spec(dataset).map_or_else(|_| dataset.to_owned(), |spec| spec.title.to_owned());
    let mut title = format!("{dataset}, {arch}");
    if let Some(train) = train {
        let _ = write!(title, ", first {train} training images");
    }
    if let Some(test) = test {
        let _ = write!(title, ", first {test} test images");
    }
    if precisions.iter().any(|p| *p != Precision::F32.name()) {
        let names: Vec<&str> = precisions.iter().copied().collect();
        let _ = write!(title, ", trained in {}", names.join(" and "));
    }
    let numbers: Vec<String> = seeds.iter().map(u64::to_string).collect();
    let plural = if numbers.len() == 1 { "" } else { "s" };
    // Where nothing is complete yet there is no seed.
    if !numbers.is_empty() {
        let _ = write!(title, ", seed{plural} {}", numbers.join(", "));
    }
    title
}
