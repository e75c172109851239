//! From a grid file to everything that its cells follow from: methods, settings, data, network.
//!
//! All of it is checked before the first cell is begun, so that a slip in the last line does not cost a night.
use std::path::{Path, PathBuf};

use bb_attack::harness::GivenData;
use bb_attack::method::AnyAttack;
use bb_core::cell::{Cell, CellSpec, Kind};
use bb_core::cli::Failure;
use bb_core::data::{self, Dataset, OpenOptions};
use bb_defense::method::AnyDefense;
use bb_nn::ArchSpec;

use crate::grid::{Entry, Grid};

/// Folder for results where neither the command line nor the grid names one.
pub const DEFAULT_OUT: &str = "runs";

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
    /// Finds the methods (`extra` are defenses of other crates), checks all settings and opens the data.
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
        let data = places.data.clone().or_else(|| grid.data.clone());
        let (attacks, mut defenses) = methods(&grid, extra)?;
        let options = OpenOptions {
            cache_dir: Some(cache(&out)),
            train_limit: grid.train_limit,
            test_limit: grid.test_limit,
            seed: 0,
        };
        let dataset = data::open(&grid.dataset, data.as_deref(), &options)?;
        let arch = ArchSpec::new(&grid.arch, grid.width, dataset.spec.classes)?;
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
        Ok(spec?)
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
    Ok((attacks, defenses.collect::<Result<_, _>>()?))
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
    let ready = attack.resolve(&grid.dataset, &given)?;
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
    let ready = defense.resolve(&grid.dataset, &given)?;
    Ok(PreparedDefense {
        label: label(entry, defense.info().title),
        defense,
        given,
        ready,
        clean_indices: None,
    })
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
