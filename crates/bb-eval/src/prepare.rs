//! From a grid file to everything that its cells follow from: methods, settings, data, network.
//!
//! All of it is checked before the first cell is begun, so that a slip in the last line does not cost a night.
use std::path::{Path, PathBuf};

use bb_attack::AttackError;
use bb_attack::harness::GivenData;
use bb_attack::inputaware::InputAware;
use bb_attack::labels::LabelMap;
use bb_attack::method::{AnyAttack, Attack};
use bb_attack::poison_index::{self, Oversize};
use bb_attack::wanet::Wanet;
use bb_core::cell::{Cell, CellSpec, Kind};
use bb_core::cli::{Coded, Failure, exit};
use bb_core::data::{self, DataError, Dataset, OpenOptions};
use bb_defense::DefenseError;
use bb_defense::method::AnyDefense;
use bb_nn::ArchSpec;
use serde_json::Value;

use crate::grid::{Entry, Grid};
use crate::table::{AVERAGE, UNDEFENDED, oracle_label};

/// Folder for results where neither the command line nor the grid names one.
pub const DEFAULT_OUT: &str = "runs";

/// Why a grid cannot be run, beside what is wrong with single methods and with the data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// Results cannot lie in a file.
    #[error("`{}` is a file, expected a folder for the results", path.display())]
    OutIsFile {
        /// The file.
        path: PathBuf,
    },
    /// A label would break the lines of a table.
    #[error("the label `{}` has a control character, expected one line of text", label.escape_debug())]
    LabelLine {
        /// The label.
        label: String,
    },
    /// A label is a name that the table needs itself.
    #[error("the label `{label}` is what a table calls {what}, expected another one")]
    LabelTaken {
        /// The label.
        label: String,
        /// What has this name.
        what: String,
    },
    /// Two rows would look the same.
    #[error("the label `{label}` is that of line {first}, too, expected another one")]
    LabelTwice {
        /// The label.
        label: String,
        /// Line of the entry that has it already.
        first: usize,
    },
}

impl Coded for PrepareError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::OutIsFile { .. } => exit::INPUT,
            Self::LabelLine { .. } | Self::LabelTaken { .. } | Self::LabelTwice { .. } => {
                exit::USAGE
            }
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::OutIsFile { .. } => "give another folder with `--out DIR`".to_owned(),
            _ => "give the entry a `label` of its own".to_owned(),
        })
    }
}

/// Where to read and write, as the command line says; it wins over the grid.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// Folder with the datasets.
    pub data: Option<PathBuf>,
    /// Folder for the results.
    pub out: Option<PathBuf>,
}

/// An attack of the grid.
pub struct PreparedAttack {
    /// What the table prints.
    pub label: String,
    /// The method.
    pub attack: &'static dyn AnyAttack,
    /// Where its settings come from.
    pub given: bb_attack::method::Given,
    ready: Box<dyn bb_attack::method::Ready>,
}

/// A defense of the grid.
pub struct PreparedDefense {
    /// What the table prints.
    pub label: String,
    /// The method.
    pub defense: &'static dyn AnyDefense,
    /// Where its settings come from.
    pub given: bb_defense::method::Given,
    ready: Box<dyn bb_defense::method::Ready>,
    /// Digest of the indices of the clean images that it is given.
    clean_indices: Option<String>,
}

impl PreparedDefense {
    /// The complete settings.
    pub fn settings(&self) -> &Value {
        self.ready.tree()
    }
}

/// A grid with everything found and checked.
pub struct Prepared {
    /// The grid as written.
    pub grid: Grid,
    /// Folder for the results.
    pub out: PathBuf,
    /// Folder with the datasets.
    pub data: Option<PathBuf>,
    /// The attacks, in the order of the grid.
    pub attacks: Vec<PreparedAttack>,
    /// The defenses, in the order of the grid.
    pub defenses: Vec<PreparedDefense>,
    /// The data, opened.
    pub dataset: Dataset,
    /// The network.
    pub arch: ArchSpec,
}

impl Prepared {
    /// Finds the methods (`extra` are defenses of other crates), opens the data and checks all settings.
    pub fn new(
        grid: Grid,
        places: &Places,
        extra: &[&'static dyn AnyDefense],
    ) -> Result<Self, Failure> {
        let out = places
            .out
            .clone()
            .or_else(|| grid.out.clone())
            .unwrap_or_else(|| PathBuf::from(DEFAULT_OUT));
        check_out(&out)?;
        let data = places.data.clone().or_else(|| grid.data.clone());
        let (mut attacks, mut defenses) = methods(&grid, extra)?;
        let options = OpenOptions {
            cache_dir: Some(cache(&out)),
            train_limit: grid.train_limit,
            test_limit: grid.test_limit,
            test_split: grid.test_split.clone(),
            seed: 0,
        };
        let dataset = data::open(&grid.dataset, data.as_deref(), &options).map_err(no_data)?;
        bb_attack::harness::check_limits(&GivenData {
            id: &grid.dataset,
            train_limit: grid.train_limit,
            test_limit: grid.test_limit,
            test_split: grid.test_split.as_deref(),
            dataset: &dataset,
        })?;
        let arch = ArchSpec::for_dataset(&grid.arch, grid.width, &dataset.spec)?;
        for (prepared, entry) in attacks.iter_mut().zip(&grid.attacks) {
            // What it warns of is said by the run of the cell.
            let bound = prepared.ready.bind(&dataset).map(|_| ());
            bound
                .map_err(|e| in_grid(e, &grid, entry))
                .and_then(|()| check_choice(prepared, &dataset, &grid.seeds))
                .map_err(|e| located(e.into(), &grid, entry, Kind::Attack))?;
        }
        for (prepared, entry) in defenses.iter_mut().zip(&grid.defenses) {
            let armed = prepared.ready.grant(&dataset);
            let granted = armed.map_err(|e| located(e.into(), &grid, entry, Kind::Defense))?;
            prepared.clean_indices = granted.granted().map(|g| g.indices_sha256.clone());
        }
        Ok(Self {
            grid,
            out,
            data,
            attacks,
            defenses,
            dataset,
            arch,
        })
    }

    /// What attack number `attack` with this seed follows from: the same as `bb_attack::run` finds, without running.
    pub fn attack_spec(&self, attack: usize, seed: u64) -> Result<CellSpec, Failure> {
        let prepared = &self.attacks[attack];
        let data = GivenData {
            id: &self.grid.dataset,
            train_limit: self.grid.train_limit,
            test_limit: self.grid.test_limit,
            test_split: self.grid.test_split.as_deref(),
            dataset: &self.dataset,
        };
        let spec = bb_attack::harness::cell_spec(
            prepared.attack,
            &*prepared.ready,
            &data,
            &self.arch,
            self.grid.precision,
            seed,
        );
        // A file of the settings that cannot be read, say.
        spec.map_err(|e| {
            let entry = &self.grid.attacks[attack];
            located(e.into(), &self.grid, entry, Kind::Attack)
        })
    }

    /// What defense number `defense` on a complete attack follows from: the same as `bb_defense::run` finds.
    pub fn defense_spec(&self, defense: usize, attack: &Cell, seed: u64) -> CellSpec {
        let prepared = &self.defenses[defense];
        bb_defense::harness::cell_spec(
            prepared.defense,
            &*prepared.ready,
            attack,
            &self.dataset,
            prepared.clean_indices.as_deref(),
            self.grid.precision,
            seed,
        )
    }
}

/// The methods of a grid with their settings, checked; needs no data.
pub fn methods(
    grid: &Grid,
    extra: &[&'static dyn AnyDefense],
) -> Result<(Vec<PreparedAttack>, Vec<PreparedDefense>), Failure> {
    let attacks = grid
        .attacks
        .iter()
        .map(|e| attack(grid, e).map_err(|f| located(f, grid, e, Kind::Attack)));
    let attacks = attacks.collect::<Result<_, _>>()?;
    let defenses = grid
        .defenses
        .iter()
        .map(|e| defense(grid, e, extra).map_err(|f| located(f, grid, e, Kind::Defense)));
    let (attacks, defenses): (Vec<PreparedAttack>, Vec<PreparedDefense>) =
        (attacks, defenses.collect::<Result<_, _>>()?);
    let labels: Vec<&str> = attacks.iter().map(|a| a.label.as_str()).collect();
    check_labels(&labels, grid, Kind::Attack)?;
    let labels: Vec<&str> = defenses.iter().map(|d| d.label.as_str()).collect();
    check_labels(&labels, grid, Kind::Defense)?;
    Ok((attacks, defenses))
}

/// Checks that every label is one line, and that no two rows of a table are called the same.
fn check_labels(labels: &[&str], grid: &Grid, kind: Kind) -> Result<(), Failure> {
    let entries = match kind {
        Kind::Attack => &grid.attacks,
        Kind::Defense => &grid.defenses,
    };
    let same = |one: &str, other: &str| one.to_lowercase() == other.to_lowercase();
    let taken = |label: &str| match kind {
        Kind::Attack => same(label, AVERAGE).then(|| "the average over the attacks".to_owned()),
        Kind::Defense if same(label, UNDEFENDED) => Some("the model without a defense".to_owned()),
        Kind::Defense => {
            let defense = labels.iter().find(|l| same(label, &oracle_label(l)));
            defense.map(|defense| format!("the oracle of `{defense}`"))
        }
    };
    for (i, (&label, entry)) in labels.iter().zip(entries).enumerate() {
        let first = labels[..i].iter().position(|earlier| same(earlier, label));
        let label = label.to_owned();
        let error = if label.chars().any(char::is_control) {
            PrepareError::LabelLine { label }
        } else if let Some(what) = taken(&label) {
            PrepareError::LabelTaken { label, what }
        } else if let Some(first) = first {
            let first = entries[first].line;
            PrepareError::LabelTwice { label, first }
        } else {
            continue;
        };
        return Err(located(error.into(), grid, entry, kind));
    }
    Ok(())
}

/// Checks that results can lie in a folder, which need not be there yet.
pub(crate) fn check_out(out: &Path) -> Result<(), PrepareError> {
    let found = out.ancestors().find_map(|p| Some((p, p.metadata().ok()?)));
    match found {
        Some((path, found)) if !found.is_dir() => Err(PrepareError::OutIsFile {
            path: path.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// A failure to open the data of a grid.
fn no_data(error: DataError) -> Failure {
    let named = !matches!(error, DataError::NoRoot { .. });
    let failure = Failure::from(error);
    if named {
        return failure;
    }
    failure.hint("give the folder with `--data DIR`, or with `data = \"DIR\"` in the grid")
}

/// Attacks that take their share of every batch, so that they choose no images before training.
const IN_LOOP: [&str; 2] = [Wanet::INFO.id, InputAware::INFO.id];

/// Checks what an attack would find out when it chooses its images, which it does when other cells are trained already.
fn check_choice(
    prepared: &PreparedAttack,
    dataset: &Dataset,
    seeds: &[u64],
) -> Result<(), AttackError> {
    let settings = prepared.ready.tree();
    let Some(map) = LabelMap::of_settings(settings, dataset.spec.classes)? else {
        return Ok(());
    };
    poison_index::test(&dataset.test.labels, &map)?;
    for &seed in seeds {
        prepared.ready.check(dataset, seed)?;
    }
    let ratio = settings["ratio"].as_f64();
    let Some(ratio) = ratio.filter(|_| !IN_LOOP.contains(&prepared.attack.info().id)) else {
        return Ok(());
    };
    let labels = &dataset.train.labels;
    let oversize = serde_json::from_value::<Oversize>(settings["oversize"].clone());
    let (ratio, _) = poison_index::fitting(labels, &map, ratio, oversize.unwrap_or_default());
    for &seed in seeds {
        poison_index::draw_train(labels, &map, ratio, seed)?;
    }
    Ok(())
}

/// Folder for decoded images.
pub(crate) fn cache(out: &Path) -> PathBuf {
    out.join("cache")
}

fn attack(grid: &Grid, entry: &Entry) -> Result<PreparedAttack, Failure> {
    let attack = bb_attack::registry::find(&entry.method)?;
    let given = bb_attack::method::Given {
        files: entry.config.clone(),
        set: entry.set.clone(),
    };
    let ready = attack.resolve(&grid.dataset, &given);
    let ready = ready.map_err(|e| in_grid(e, grid, entry))?;
    Ok(PreparedAttack {
        label: label(entry, attack.info().title),
        attack,
        given,
        ready,
    })
}

fn defense(
    grid: &Grid,
    entry: &Entry,
    extra: &[&'static dyn AnyDefense],
) -> Result<PreparedDefense, Failure> {
    let defense = bb_defense::registry::find(&entry.method, extra)?;
    let given = bb_defense::method::Given {
        files: entry.config.clone(),
        set: entry.set.clone(),
    };
    let ready = defense.resolve(&grid.dataset, &given);
    let ready = ready.map_err(|error| match error {
        DefenseError::Settings(error) => {
            DefenseError::Settings(error.relocated(&|set| entry.origin(set, &grid.path)))
        }
        other => other,
    })?;
    Ok(PreparedDefense {
        label: label(entry, defense.info().title),
        defense,
        given,
        ready,
        clean_indices: None,
    })
}

/// The same error with the line of the grid, where it is about a setting that stands there.
fn in_grid(error: AttackError, grid: &Grid, entry: &Entry) -> AttackError {
    match error {
        AttackError::Settings(error) => {
            AttackError::Settings(error.relocated(&|set| entry.origin(set, &grid.path)))
        }
        other => other,
    }
}

fn label(entry: &Entry, title: &str) -> String {
    if entry.label.is_empty() {
        title.to_owned()
    } else {
        entry.label.clone()
    }
}

fn located(failure: Failure, grid: &Grid, entry: &Entry, kind: Kind) -> Failure {
    failure.context(format!(
        "`[[{kind}]]` in {}, line {}, cannot be used",
        grid.path.display(),
        entry.line
    ))
}
