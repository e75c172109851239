//! From a grid file to everything that its cells follow from: methods, settings, data, network.
//!
//! All of it is checked before the first cell is begun, so that a slip in the last line does not cost a night.
use std::path::{Path, PathBuf};

use bb_attack::AttackError;
use bb_attack::harness::{GivenData, check_choice};
use bb_attack::method::AnyAttack;
use bb_core::cell::contract::{Input, Limits};
use bb_core::cell::{Cell, CellSpec, Kind, store};
use bb_core::cli::{Coded, Failure, exit};
use bb_core::data::{self, DataError, Dataset, OpenOptions};
use bb_defense::DefenseError;
use bb_defense::method::AnyDefense;
use bb_nn::ArchSpec;
use serde_json::Value;

use crate::grid::{Entry, Grid, Model};
use crate::paper::{DEFAULT_PAPER, Paper};
use crate::table::{AVERAGE, UNDEFENDED, oracle_label};
use crate::zoo::{self, ImportRequest};

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
    /// A pattern of paths that cannot be understood.
    #[error("`{}` is no pattern: {why}", path.display())]
    Pattern {
        /// The pattern.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A pattern that fits nothing.
    #[error("nothing fits `{}`, expected at least one model", path.display())]
    NoModel {
        /// The pattern.
        path: PathBuf,
    },
    /// One label for several models.
    #[error("the label `{label}` is for one model, and the path fits {found}")]
    OneLabel {
        /// The label.
        label: String,
        /// How many models there are.
        found: usize,
    },
    /// A model of other images than the grid's.
    #[error("`{}` was trained on {} images, and the grid has {expected}", path.display(), found.map_or("all".to_owned(), |n| format!("the first {n}")))]
    OtherImages {
        /// The model.
        path: PathBuf,
        /// How many training images it saw, if not all.
        found: Option<usize>,
        /// How many training images the grid has.
        expected: usize,
    },
}

impl Coded for PrepareError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::OutIsFile { .. } => exit::INPUT,
            _ => exit::USAGE,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::OutIsFile { .. } => "give another folder with `--store DIR`".to_owned(),
            Self::Pattern { .. } | Self::NoModel { .. } => {
                "a path is relative to the grid file".to_owned()
            }
            Self::OneLabel { .. } => "leave it out; each is called by its folder then".to_owned(),
            Self::OtherImages { found: Some(n), .. } => format!("set `train_limit = {n}`"),
            Self::OtherImages { found: None, .. } => "leave `train_limit` out".to_owned(),
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

/// What is repaired in a row of the table: an attack, or a model that was trained elsewhere.
pub struct PreparedAttack {
    /// What the table prints.
    pub label: String,
    /// Where its model comes from.
    pub source: Source,
    /// Line in the grid file, counted from 1.
    line: usize,
}

/// Where an attacked model comes from.
pub enum Source {
    /// It is trained.
    Trained(Trained),
    /// It is imported.
    Imported(Box<Imported>),
}

/// An attack to be trained.
pub struct Trained {
    /// The method.
    pub attack: &'static dyn AnyAttack,
    /// Where its settings come from.
    pub given: bb_attack::method::Given,
    ready: Box<dyn bb_attack::method::Ready>,
}

/// A model to be imported, which was read and compared with the data.
pub struct Imported {
    /// What is imported.
    pub request: ImportRequest,
    /// What its cell follows from, whatever the seed.
    pub spec: CellSpec,
}

impl PreparedAttack {
    /// The method that its cells are filed under.
    pub fn method(&self) -> &str {
        match &self.source {
            Source::Trained(trained) => trained.attack.info().id,
            Source::Imported(imported) => &imported.spec.method,
        }
    }

    /// Its network, if it need not be that of the grid.
    pub(crate) fn network(&self) -> Option<&str> {
        match &self.source {
            Source::Trained(_) => None,
            Source::Imported(imported) => Some(&imported.spec.arch),
        }
    }
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
    /// The attacks, in the order of the grid, and behind them the models.
    pub attacks: Vec<PreparedAttack>,
    /// The defenses, in the order of the grid.
    pub defenses: Vec<PreparedDefense>,
    /// The data, opened.
    pub dataset: Dataset,
    /// The network.
    pub arch: ArchSpec,
    /// The published numbers to compare with.
    pub paper: Paper,
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
            .unwrap_or_else(|| PathBuf::from(store::DEFAULT));
        check_out(&out)?;
        let paper = Paper::open(grid.paper.as_deref().unwrap_or(DEFAULT_PAPER)).map_err(|e| {
            let grid = grid.path.display();
            Failure::from(e).context(format!("`paper` of {grid} cannot be used"))
        })?;
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
            let Source::Trained(trained) = &mut prepared.source else {
                continue;
            };
            // What it warns of is said by the run of the cell.
            let bound = trained.ready.bind(&dataset).map(|_| ());
            bound
                .map_err(|e| in_grid(e, &grid, entry))
                .and_then(|()| check_choice(&*trained.ready, &dataset, &grid.seeds))
                .map_err(|e| located(e.into(), &grid, entry.line, Kind::Attack.as_str()))?;
        }
        for (path, model) in found(&grid)? {
            let imported = imported(&grid, model, path, (&out, data.as_deref()))
                .and_then(|imported| fits(imported, &dataset))
                .map_err(|e| located(e, &grid, model.line, MODEL))?;
            attacks.push(imported);
        }
        check_labels(&attacks, &defenses, &grid)?;
        for (prepared, entry) in defenses.iter_mut().zip(&grid.defenses) {
            let armed = prepared.ready.grant(&dataset);
            let granted =
                armed.map_err(|e| located(e.into(), &grid, entry.line, Kind::Defense.as_str()))?;
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
            paper,
        })
    }

    /// The folder for the tables of this grid, beside the cells that all grids share.
    pub fn tables(&self) -> PathBuf {
        self.out.join("tables").join(&self.grid.name)
    }

    /// What attack number `attack` with this seed follows from: the same as `bb_attack::run` finds, without running.
    pub fn attack_spec(&self, attack: usize, seed: u64) -> Result<CellSpec, Failure> {
        let prepared = &self.attacks[attack];
        let trained = match &prepared.source {
            Source::Trained(trained) => trained,
            Source::Imported(imported) => return Ok(imported.spec.clone()),
        };
        let data = GivenData {
            id: &self.grid.dataset,
            train_limit: self.grid.train_limit,
            test_limit: self.grid.test_limit,
            test_split: self.grid.test_split.as_deref(),
            dataset: &self.dataset,
        };
        let spec = bb_attack::harness::cell_spec(
            trained.attack,
            &*trained.ready,
            &data,
            &self.arch,
            self.grid.precision,
            seed,
        );
        // A file of the settings that cannot be read, say.
        let kind = Kind::Attack.as_str();
        spec.map_err(|e| located(e.into(), &self.grid, prepared.line, kind))
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

/// The methods of a grid with their settings, checked; needs no data, and leaves models out.
pub fn methods(
    grid: &Grid,
    extra: &[&'static dyn AnyDefense],
) -> Result<(Vec<PreparedAttack>, Vec<PreparedDefense>), Failure> {
    let attacks = grid.attacks.iter().map(|e| {
        let prepared = attack(grid, e);
        prepared.map_err(|f| located(f, grid, e.line, Kind::Attack.as_str()))
    });
    let attacks: Vec<PreparedAttack> = attacks.collect::<Result<_, _>>()?;
    let defenses = grid.defenses.iter().map(|e| {
        let prepared = defense(grid, e, extra);
        prepared.map_err(|f| located(f, grid, e.line, Kind::Defense.as_str()))
    });
    let defenses: Vec<PreparedDefense> = defenses.collect::<Result<_, _>>()?;
    check_labels(&attacks, &defenses, grid)?;
    Ok((attacks, defenses))
}

/// A label with its line and what the grid calls its table.
type Label<'a> = (&'a str, usize, &'static str);

/// Checks that every label is one line, and that no two rows of a table are called the same.
fn check_labels(
    attacks: &[PreparedAttack],
    defenses: &[PreparedDefense],
    grid: &Grid,
) -> Result<(), Failure> {
    let attacks: Vec<Label<'_>> = attacks
        .iter()
        .map(|attack| {
            let kind = match &attack.source {
                Source::Trained(_) => Kind::Attack.as_str(),
                Source::Imported(_) => MODEL,
            };
            (attack.label.as_str(), attack.line, kind)
        })
        .collect();
    let defenses: Vec<Label<'_>> = defenses
        .iter()
        .zip(&grid.defenses)
        .map(|(defense, entry)| (defense.label.as_str(), entry.line, Kind::Defense.as_str()))
        .collect();
    let same = |one: &str, other: &str| one.to_lowercase() == other.to_lowercase();
    let of_attack =
        |label: &str| same(label, AVERAGE).then(|| "the average over the attacks".to_owned());
    let of_defense = |label: &str| {
        if same(label, UNDEFENDED) {
            return Some("the model without a defense".to_owned());
        }
        let oracle = defenses
            .iter()
            .find(|(l, ..)| same(label, &oracle_label(l)));
        oracle.map(|(defense, ..)| format!("the oracle of `{defense}`"))
    };
    let check = |labels: &[Label<'_>], taken: &dyn Fn(&str) -> Option<String>| {
        for (i, &(label, line, kind)) in labels.iter().enumerate() {
            let first = labels[..i].iter().find(|earlier| same(earlier.0, label));
            let label = label.to_owned();
            let error = if label.chars().any(char::is_control) {
                PrepareError::LabelLine { label }
            } else if let Some(what) = taken(&label) {
                PrepareError::LabelTaken { label, what }
            } else if let Some(&(_, first, _)) = first {
                PrepareError::LabelTwice { label, first }
            } else {
                continue;
            };
            return Err(located(error.into(), grid, line, kind));
        }
        Ok(())
    };
    check(&attacks, &of_attack)?;
    check(&defenses, &of_defense)
}

/// What the grid calls a model that was trained elsewhere.
const MODEL: &str = "model";

/// The paths of the models of a grid, each with its entry; a pattern may find several.
fn found(grid: &Grid) -> Result<Vec<(PathBuf, &Model)>, Failure> {
    let mut all = Vec::new();
    for model in &grid.models {
        let at = |error: PrepareError| located(error.into(), grid, model.line, MODEL);
        let path = model.path.clone();
        let pattern = path.to_str().filter(|text| text.contains(['*', '?', '[']));
        let Some(pattern) = pattern else {
            all.push((path, model));
            continue;
        };
        let paths = glob::glob(pattern).map_err(|error| {
            at(PrepareError::Pattern {
                path: path.clone(),
                why: error.msg,
            })
        })?;
        // A folder that cannot be listed has nothing that could be imported.
        let paths: Vec<PathBuf> = paths.filter_map(Result::ok).collect();
        if paths.is_empty() {
            return Err(at(PrepareError::NoModel { path }));
        }
        if paths.len() > 1 && !model.label.is_empty() {
            let (label, found) = (model.label.clone(), paths.len());
            return Err(at(PrepareError::OneLabel { label, found }));
        }
        all.extend(paths.into_iter().map(|path| (path, model)));
    }
    grid.check_size(grid.attacks.len() + all.len())?;
    Ok(all)
}

/// A model that was read and checked.
fn imported(
    grid: &Grid,
    model: &Model,
    path: PathBuf,
    (out, data): (&Path, Option<&Path>),
) -> Result<PreparedAttack, Failure> {
    let attack = model.attack.as_deref().map(zoo::attack_name).transpose()?;
    let name = path.file_name().unwrap_or(path.as_os_str());
    let label = match model.label.as_str() {
        "" => name.to_string_lossy().into_owned(),
        label => label.to_owned(),
    };
    let request = ImportRequest {
        path,
        dataset: grid.dataset.clone(),
        data: data.map(Path::to_owned),
        arch: model.arch.clone(),
        attack: attack.map(str::to_owned),
        key: model.key.clone(),
        test_split: grid.test_split.clone(),
        test_limit: grid.test_limit,
        quiet: true,
        out: out.to_owned(),
        ..ImportRequest::default()
    };
    let spec = zoo::check(&request)?.spec;
    Ok(PreparedAttack {
        label,
        source: Source::Imported(Box::new(Imported { request, spec })),
        line: model.line,
    })
}

/// The model, if it is of the images of the grid.
fn fits(prepared: PreparedAttack, dataset: &Dataset) -> Result<PreparedAttack, Failure> {
    let Source::Imported(imported) = &prepared.source else {
        return Ok(prepared);
    };
    let Imported { request, spec } = &**imported;
    if spec.input(Input::Dataset) == Some(&dataset.digest) {
        return Ok(prepared);
    }
    Err(PrepareError::OtherImages {
        path: request.path.clone(),
        found: Limits::of(&spec.settings).ok().and_then(|l| l.train_limit),
        expected: dataset.train.len(),
    }
    .into())
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
        label: entry.named(attack.info().title),
        source: Source::Trained(Trained {
            attack,
            given,
            ready,
        }),
        line: entry.line,
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
        label: entry.named(defense.info().title),
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

fn located(failure: Failure, grid: &Grid, line: usize, table: &str) -> Failure {
    failure.context(format!(
        "`[[{table}]]` in {}, line {line}, cannot be used",
        grid.path.display(),
    ))
}
