//! Grid files: which attacks meet which defenses, on what data, with which seeds.
//!
//! ```toml
//! [grid]
//! name = "quickstart"                 # names the table
//! dataset = "synthetic"
//! arch = "preactresnet18"             # this is the default
//! width = 8                           # channels of the first stage; 64 is the default
//! precision = "bf16"                  # how convolutions multiply while training; "f32" is the default
//! seeds = [0]                         # [0, 1, 2] is the default
//! data = "data"                       # optional; `--data` wins; relative to the current folder
//! store = "runs"                      # optional: folder of results; `--store` wins; relative to the current folder
//! train_limit = 2000                  # optional: only the first images
//! test_limit = 500
//! asr_floor = 0.5                     # optional: an attack below is marked, see `table`; this is the default
//! test_split = "val"                  # optional: measure on this split, where it is not the usual one
//! paper = "tsbd"                      # optional: whose numbers stand beside ours; a name, or a file as `docs/papers` has
//!
//! [[attack]]
//! method = "badnets"
//! label = "BadNets"                   # optional: what the table prints; needed if a method is there twice
//! config = ["../attack/mine.toml"]    # optional: settings files, relative to this file
//! set = { train.epochs = 3 }          # optional: single settings, over the files
//! sweep = { ratio = [0.01, 0.1] }     # optional: one entry for each value, or for each combination of several
//!
//! [[model]]                           # a model that was trained elsewhere, in place of an attack or beside some
//! path = "record/*"                   # what `bb-eval zoo import` takes, relative to this file; `*` and `?` stand for any
//! attack = "badnets"                  # optional: the attack it is filed under
//! label = "mine"                      # optional: what the table prints, for a path of one model; else the last folder
//! key = "model"                       # optional: key of the network in the file
//! arch = "resnet18"                   # optional: for a file that does not name it
//!
//! [[defense]]                         # the keys of an attack
//! method = "tsbd"
//! ```
//!
//! Every attack is trained with every seed, and every defense repairs every one of these models with the same seed.
//! A model is what it is, whatever the seed and the network of the grid; it must be of the grid's dataset and limits.
//! A key that is not listed here is an error.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bb_core::cli::{Coded, DEFAULT_ARCH, DEFAULT_WIDTH, MOST_IMAGES, MOST_WIDTH, exit};
use bb_core::data;
use bb_core::precision::Precision;
use bb_core::settings::{Origin, did_you_mean};
use bb_zoo::strict::{Document, Field, StrictError, Table};

use crate::paper;
use crate::table::DEFAULT_ASR_FLOOR;

/// Seeds of a grid that names none: enough for a mean and a spread.
pub const DEFAULT_SEEDS: [u64; 3] = [0, 1, 2];
/// Most seeds of a grid.
const MOST_SEEDS: usize = 1000;
/// Most cells of a grid; at a minute each it runs for a week.
const MOST_CELLS: usize = 10_000;

/// The fields of `[grid]`.
pub const GRID_FIELDS: [&str; 13] = [
    "name",
    "dataset",
    "data",
    "arch",
    "width",
    "precision",
    "seeds",
    "store",
    "train_limit",
    "test_limit",
    "test_split",
    "asr_floor",
    "paper",
];

/// What can be wrong with a grid file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GridError {
    /// The file cannot be read or is not what the schema says.
    #[error(transparent)]
    Strict(#[from] StrictError),
    /// The grid has no attack.
    #[error("the grid has no `[[attack]]` and no `[[model]]`\n  in {}", path.display())]
    NoAttack {
        /// The file.
        path: PathBuf,
    },
    /// The entries and seeds make more cells than anybody computes.
    #[error("the grid has {cells} cells, expected at most {MOST_CELLS}\n  in {}", path.display())]
    TooManyCells {
        /// The file.
        path: PathBuf,
        /// Each attack with each seed, alone and below each defense.
        cells: usize,
    },
    /// Two entries would have the same name in the table.
    #[error("two entries are called `{label}`\n  in {}, lines {first} and {line}", path.display())]
    SameLabel {
        /// The file.
        path: PathBuf,
        /// The name.
        label: String,
        /// Line of the first entry.
        first: usize,
        /// Line of the second entry.
        line: usize,
    },
}

impl Coded for GridError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Strict(error) => error.exit_code(),
            Self::NoAttack { .. } | Self::TooManyCells { .. } | Self::SameLabel { .. } => {
                exit::USAGE
            }
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Strict(error) => error.hint(),
            Self::NoAttack { .. } => {
                Some("add `[[attack]]` with `method = \"badnets\"`".to_owned())
            }
            Self::TooManyCells { .. } => Some("make several grids of it".to_owned()),
            Self::SameLabel { .. } => Some("give one of them a `label` of its own".to_owned()),
        }
    }
}

/// A grid as written.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    /// The file it came from.
    pub path: PathBuf,
    /// Name of the grid.
    pub name: String,
    /// Dataset id.
    pub dataset: String,
    /// Where the datasets lie.
    pub data: Option<PathBuf>,
    /// Architecture id.
    pub arch: String,
    /// Channels of the first stage.
    pub width: usize,
    /// How convolutions multiply while networks are trained.
    pub precision: Precision,
    /// One run per seed.
    pub seeds: Vec<u64>,
    /// Folder for the results.
    pub out: Option<PathBuf>,
    /// Only the first images of the train split.
    pub train_limit: Option<usize>,
    /// Only the first images of the test split.
    pub test_limit: Option<usize>,
    /// The ASR, 0 to 1, under which an attack did not plant its backdoor.
    pub asr_floor: f64,
    /// The split to measure on, where it is not the usual one.
    pub test_split: Option<String>,
    /// The paper to compare with, by name or file.
    pub paper: Option<String>,
    /// The attacks.
    pub attacks: Vec<Entry>,
    /// The models that were trained elsewhere; in the table they stand behind the attacks.
    pub models: Vec<Model>,
    /// The defenses.
    pub defenses: Vec<Entry>,
}

/// One attack or one defense of a grid.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Method id.
    pub method: String,
    /// What the table prints; empty for the method's own title.
    pub label: String,
    /// Settings files, the last one wins.
    pub config: Vec<PathBuf>,
    /// Single settings `key=value`, over the files.
    pub set: Vec<String>,
    /// Line of each of them in the grid file, counted from 1.
    pub set_lines: Vec<usize>,
    /// What the table prints behind the label: the values of the sweep that this entry is of; empty without one.
    pub variant: String,
    /// Line of the entry in the grid file, counted from 1.
    pub line: usize,
}

/// One model of a grid, or several that a pattern finds.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// The path, or a pattern with `*` and `?`.
    pub path: PathBuf,
    /// The attack that it is filed under.
    pub attack: Option<String>,
    /// What the table prints; empty for the last part of the path.
    pub label: String,
    /// Key of the network in the file.
    pub key: Option<String>,
    /// Its architecture, for a file that does not name it.
    pub arch: Option<String>,
    /// Line of the entry in the grid file, counted from 1.
    pub line: usize,
}

impl Entry {
    /// What the table prints, where `title` is the method's.
    pub fn named(&self, title: &str) -> String {
        let label = if self.label.is_empty() {
            title
        } else {
            &self.label
        };
        if self.variant.is_empty() {
            label.to_owned()
        } else {
            format!("{label} ({})", self.variant)
        }
    }

    /// Where a setting of [`Entry::set`] stands in the grid file at `path`.
    pub fn origin(&self, assignment: &str, path: &Path) -> Option<Origin> {
        let at = self.set.iter().position(|set| set == assignment)?;
        Some(Origin::File {
            path: path.to_owned(),
            line: *self.set_lines.get(at)?,
        })
    }
}

impl Grid {
    /// Reads a grid file.
    pub fn load(path: &Path) -> Result<Self, GridError> {
        Self::read(&Document::read(path)?)
    }

    /// Reads the text of a grid file; paths in it are relative to the folder of `path`.
    pub fn parse(path: impl Into<PathBuf>, text: &str) -> Result<Self, GridError> {
        Self::read(&Document::new(path, text))
    }

    /// Checks that so many attacks and models are no more than anybody computes.
    pub(crate) fn check_size(&self, rows: usize) -> Result<(), GridError> {
        let cells = rows * (1 + self.defenses.len()) * self.seeds.len();
        if cells > MOST_CELLS {
            let path = self.path.clone();
            return Err(GridError::TooManyCells { path, cells });
        }
        Ok(())
    }

    fn read(document: &Document) -> Result<Self, GridError> {
        document.parse(|top| {
            top.only(&["grid", "attack", "model", "defense"])?;
            let t = top
                .table("grid")?
                .ok_or_else(|| top.missing("grid", "a table"))?;
            t.only(&GRID_FIELDS)?;
            let dataset = required(&t, "dataset")?;
            if let Err(error) = data::spec(&dataset.value) {
                let meant = error.hint().map(|hint| format!("; {hint}"));
                let meant = meant.unwrap_or_default();
                return Err(dataset
                    .refuse(format_args!("a dataset ({error}{meant})"))
                    .into());
            }
            let arch = word(&t, "arch")?;
            if let Some(arch) = &arch
                && !bb_nn::arch::NAMES.contains(&arch.value.as_str())
            {
                let names = bb_nn::arch::NAMES;
                let meant = did_you_mean(&arch.value, names.iter().copied());
                let meant = meant.map_or_else(String::new, |hint| format!("; {hint}"));
                let expected = format!("one of `{}`{meant}", names.join("`, `"));
                return Err(arch.refuse(expected).into());
            }
            let path = |name| Ok::<_, StrictError>(word(&t, name)?.map(|f| PathBuf::from(f.value)));
            let grid = Self {
                path: document.path().to_owned(),
                name: required(&t, "name")?
                    .check(
                        |name| is_folder(name),
                        "letters, digits, `.`, `_` and `-`, which names a folder",
                    )?
                    .value,
                dataset: dataset.value,
                data: path("data")?,
                arch: arch.map_or_else(|| DEFAULT_ARCH.to_owned(), |f| f.value),
                width: count(&t, "width", MOST_WIDTH)?.unwrap_or(DEFAULT_WIDTH),
                precision: precision(&t)?,
                seeds: seeds(&t)?,
                out: path("store")?,
                train_limit: count(&t, "train_limit", MOST_IMAGES)?,
                test_limit: count(&t, "test_limit", MOST_IMAGES)?,
                asr_floor: share(&t, "asr_floor")?.unwrap_or(DEFAULT_ASR_FLOOR),
                test_split: word(&t, "test_split")?.map(|f| f.value),
                paper: whose_numbers(&t, document.path())?,
                attacks: entries(&top, "attack", document.path())?,
                models: models(&top, document.path())?,
                defenses: entries(&top, "defense", document.path())?,
            };
            if grid.attacks.is_empty() && grid.models.is_empty() {
                return Err(GridError::NoAttack { path: grid.path });
            }
            grid.check_size(grid.attacks.len() + grid.models.len())?;
            Ok(grid)
        })
    }
}

/// A name, or a file relative to the grid.
fn whose_numbers(t: &Table<'_>, path: &Path) -> Result<Option<String>, StrictError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let Some(field) = word(t, "paper")? else {
        return Ok(None);
    };
    if !paper::is_file(&field.value) {
        return Ok(Some(field.value));
    }
    let path = folder.join(&field.value).into_os_string();
    let path = path.into_string();
    path.map(Some)
        .map_err(|_| field.refuse("a file below a folder whose name is UTF-8"))
}

fn entries(top: &Table<'_>, name: &str, path: &Path) -> Result<Vec<Entry>, GridError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut seen = BTreeMap::<String, usize>::new();
    let mut entries = Vec::new();
    for t in top.tables(name)? {
        t.only(&["method", "label", "config", "set", "sweep"])?;
        let settings = t.table("set")?.map(|t| t.assignments()).unwrap_or_default();
        let sweep = t.table("sweep")?.map(|t| t.alternatives()).transpose()?;
        for sweep in combinations(&settings, &sweep.unwrap_or_default(), path)? {
            let settings = settings.iter().chain(sweep.iter().copied());
            let entry = Entry {
                method: required(&t, "method")?.value,
                label: word(&t, "label")?.map(|f| f.value).unwrap_or_default(),
                config: t
                    .strs("config")?
                    .unwrap_or_default()
                    .into_iter()
                    .map(|f| folder.join(f.value))
                    .collect(),
                set_lines: settings.clone().map(Field::line).collect(),
                set: settings.map(|f| f.value.clone()).collect(),
                variant: variant(&sweep),
                line: t.line(),
            };
            // Without a label the table prints the method's title, so the method stands for it here.
            let label = entry.named(&entry.method);
            if let Some(first) = seen.insert(label.to_lowercase(), entry.line) {
                return Err(GridError::SameLabel {
                    path: path.to_owned(),
                    label,
                    first,
                    line: entry.line,
                });
            }
            entries.push(entry);
        }
    }
    Ok(entries)
}

/// One choice of each of the alternatives, for all choices; a single empty one where there are none.
fn combinations<'a, 'b>(
    set: &[Field<'b, String>],
    sweep: &'a [Vec<Field<'b, String>>],
    path: &Path,
) -> Result<Vec<Vec<&'a Field<'b, String>>>, GridError> {
    let key =
        |field: &Field<'_, String>| field.value.split('=').next().unwrap_or_default().to_owned();
    for values in sweep {
        if let Some(first) = values.first()
            && set.iter().any(|field| key(field) == key(first))
        {
            return Err(first
                .refuse("a setting that is not in `set` as well")
                .into());
        }
    }
    let cells = sweep.iter().map(Vec::len).fold(1, usize::saturating_mul);
    if cells > MOST_CELLS {
        let path = path.to_owned();
        return Err(GridError::TooManyCells { path, cells });
    }
    let mut all = vec![Vec::new()];
    for values in sweep {
        let longer = |one: &Vec<&'a Field<'b, String>>| {
            let one = one.clone();
            values
                .iter()
                .map(move |value| [&one[..], &[value]].concat())
        };
        all = all.iter().flat_map(longer).collect();
    }
    Ok(all)
}

/// `ratio=0.01, target=3`: what tells the entries of a sweep apart.
fn variant(sweep: &[&Field<'_, String>]) -> String {
    let words = sweep
        .iter()
        .map(|field| field.value.replace(['"', '\''], ""));
    let text = words.collect::<Vec<_>>().join(", ");
    text.replace(char::is_control, " ")
}

fn models(top: &Table<'_>, path: &Path) -> Result<Vec<Model>, StrictError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let read = |t: &Table<'_>| {
        t.only(&["path", "attack", "label", "key", "arch"])?;
        let line = |name| {
            let field = word(t, name)?;
            let line = |v: &String| !v.contains(char::is_control);
            let field = field
                .map(|f| f.check(line, "one line of text"))
                .transpose()?;
            Ok::<_, StrictError>(field.map(|f| f.value))
        };
        Ok(Model {
            path: folder.join(required(t, "path")?.value),
            attack: line("attack")?,
            label: line("label")?.unwrap_or_default(),
            key: line("key")?,
            arch: line("arch")?,
            line: t.line(),
        })
    };
    top.tables("model")?.iter().map(read).collect()
}

/// Whether a name can be that of a folder everywhere, and no other one's.
fn is_folder(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    name.len() <= 100
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(plain)
}

/// A string that is not empty.
fn word<'a>(t: &Table<'a>, name: &str) -> Result<Option<Field<'a, String>>, StrictError> {
    t.str(name)?
        .map(|f| f.check(|v| !v.trim().is_empty(), "a word"))
        .transpose()
}

fn required<'a>(t: &Table<'a>, name: &str) -> Result<Field<'a, String>, StrictError> {
    // Tables and messages print it.
    word(t, name)?
        .map(|f| f.check(|v| !v.contains(char::is_control), "one line of text"))
        .transpose()?
        .ok_or_else(|| t.missing(name, "a string"))
}

fn count(t: &Table<'_>, name: &str, most: usize) -> Result<Option<usize>, StrictError> {
    let Some(field) = t.int(name)? else {
        return Ok(None);
    };
    match usize::try_from(field.value) {
        Ok(count) if (1..=most).contains(&count) => Ok(Some(count)),
        _ => Err(field.refuse(format_args!("a whole number from 1 to {most}"))),
    }
}

fn share(t: &Table<'_>, name: &str) -> Result<Option<f64>, StrictError> {
    let field = t.number(name)?.map(|f| {
        let valid = |share: &f64| (0.0..=1.0).contains(share);
        f.check(valid, "a share of 0 to 1")
    });
    Ok(field.transpose()?.map(|f| f.value))
}

fn precision(t: &Table<'_>) -> Result<Precision, StrictError> {
    let Some(field) = word(t, "precision")? else {
        return Ok(Precision::default());
    };
    let known = field.value.parse();
    known.map_err(|_| field.refuse("`f32`, `bf16` or `tf32`"))
}

fn seeds(t: &Table<'_>) -> Result<Vec<u64>, StrictError> {
    let Some(fields) = t.ints("seeds")? else {
        return Ok(DEFAULT_SEEDS.to_vec());
    };
    if let Some(beyond) = fields.get(MOST_SEEDS) {
        return Err(beyond.refuse(format_args!("at most {MOST_SEEDS} seeds")));
    }
    let mut seeds = Vec::new();
    for field in fields {
        let seed =
            u64::try_from(field.value).map_err(|_| field.refuse("a whole number, 0 or more"))?;
        if seeds.contains(&seed) {
            return Err(field.refuse("each seed once"));
        }
        seeds.push(seed);
    }
    if seeds.is_empty() {
        return Err(t.missing("seeds[0]", "at least one integer"));
    }
    Ok(seeds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
[grid]
name = \"small\"
dataset = \"synthetic\"
width = 4
seeds = [3, 1]
store = \"runs/x\"
train_limit = 100

[[attack]]
method = \"badnets\"
config = [\"../attack/a.toml\", \"/abs.toml\"]
set = { ratio = 0.2, train = { epochs = 1 }, \"train.lr\" = 0.5 }

[[attack]]
method = \"badnets\"
label = \"BadNets 5 %\"

[[defense]]
method = \"tsbd\"
set.n = 0.3
";

    #[test]
    fn the_test_split_can_be_chosen() {
        let split = |text: &str| Grid::parse("g.toml", text).expect("a good grid").test_split;
        assert_eq!(split(GOOD), None);
        let chosen = GOOD.replace("train_limit = 100", "test_split = \"val\"");
        assert_eq!(split(&chosen).as_deref(), Some("val"));
    }

    #[test]
    fn a_sweep_is_an_entry_for_each_combination() {
        let text = GOOD.replace(
            "set.n = 0.3",
            "set.n = 0.3\nsweep = { unlearn.lr = [1e-3, 1e-4], \"scheme\" = [\"v1\", \"v2\"] }",
        );
        let grid = Grid::parse("g.toml", &text).expect("a good grid");
        let names: Vec<String> = grid.defenses.iter().map(|e| e.named("TSBD")).collect();
        assert_eq!(
            names,
            [
                "TSBD (unlearn.lr=1e-3, scheme=v1)",
                "TSBD (unlearn.lr=1e-3, scheme=v2)",
                "TSBD (unlearn.lr=1e-4, scheme=v1)",
                "TSBD (unlearn.lr=1e-4, scheme=v2)"
            ]
        );
        let last = &grid.defenses[3];
        assert_eq!(last.set, ["n=0.3", "unlearn.lr=1e-4", "scheme=\"v2\""]);
        assert_eq!(last.set_lines, [20, 21, 21]);
        assert_eq!(
            grid.attacks[1].named("BadNets"),
            "BadNets 5 %",
            "none there"
        );
        for (sweep, expect) in [
            (
                "sweep.n = [1, 2]",
                "`defense[0].sweep.n` is `1`, expected a setting that is not in `set` as well",
            ),
            (
                "sweep.m = 1",
                "`defense[0].sweep.m` is `1`, expected an array of the values to try",
            ),
            (
                "sweep.m = []",
                "`defense[0].sweep.m` is `[]`, expected an array of the values to try",
            ),
        ] {
            let text = GOOD.replace("set.n = 0.3", &format!("set.n = 0.3\n{sweep}"));
            let error = Grid::parse("g.toml", &text).expect_err(sweep);
            assert_eq!(error.to_string(), format!("{expect}\n  in g.toml, line 21"));
            assert_eq!(error.exit_code(), exit::USAGE);
        }
        let many = format!("{:?}", (0..101).collect::<Vec<_>>());
        let text = GOOD.replace(
            "set.n = 0.3",
            &format!("sweep = {{ a = {many}, b = {many} }}"),
        );
        let error = Grid::parse("g.toml", &text).expect_err("ten thousand and more");
        assert!(
            error.to_string().starts_with("the grid has 10201 cells"),
            "{error}"
        );
    }

    #[test]
    fn a_good_grid_is_read_whole() {
        let grid = Grid::parse("configs/grid/g.toml", GOOD).expect("a good grid");
        assert_eq!(
            (
                grid.name.as_str(),
                grid.dataset.as_str(),
                grid.arch.as_str()
            ),
            ("small", "synthetic", DEFAULT_ARCH)
        );
        assert_eq!(
            (
                grid.width,
                grid.seeds.as_slice(),
                grid.train_limit,
                grid.test_limit
            ),
            (4, &[3, 1][..], Some(100), None)
        );
        assert_eq!(grid.precision, Precision::F32, "the default");
        assert_eq!(grid.asr_floor.to_bits(), 0.5_f64.to_bits(), "the default");
        assert_eq!(grid.out.as_deref(), Some(Path::new("runs/x")));
        let [first, second] = &grid.attacks[..] else {
            panic!("two attacks")
        };
        assert_eq!(
            first.config,
            [
                Path::new("configs/grid/../attack/a.toml"),
                Path::new("/abs.toml")
            ]
        );
        assert_eq!(first.set, ["ratio=0.2", "train.epochs=1", "train.lr=0.5"]);
        assert_eq!(
            (first.line, second.line, second.label.as_str()),
            (9, 14, "BadNets 5 %")
        );
        assert_eq!(grid.defenses[0].set, ["n=0.3"]);
        let small = "grid = { name = 'a', dataset = 'cifar10', precision = 'bf16', asr_floor = 0 }\nattack = [{ method = 'badnets' }]";
        let grid = Grid::parse("g.toml", small).expect("a small grid");
        assert_eq!(
            (grid.width, grid.seeds.as_slice()),
            (DEFAULT_WIDTH, &DEFAULT_SEEDS[..])
        );
        assert_eq!(grid.precision, Precision::Bf16);
        assert_eq!(grid.asr_floor.to_bits(), 0.0_f64.to_bits());
        assert!(grid.defenses.is_empty(), "attacks alone may be wanted");
    }

    fn seeds(n: u64) -> String {
        format!("{:?}", (0..n).collect::<Vec<_>>())
    }

    #[test]
    fn a_grid_has_no_more_cells_than_anybody_computes() {
        let text = |defenses: usize| {
            let more = (1..defenses)
                .map(|i| format!("\n[[defense]]\nmethod = \"tsbd\"\nlabel = \"{i}\"\n"));
            let grid = GOOD.replace("[3, 1]", &seeds(1000));
            more.fold(grid, |text, entry| text + &entry)
        };
        // Two attacks.
        Grid::parse("g.toml", &text(4)).expect("ten thousand");
        let error = Grid::parse("g.toml", &text(5)).expect_err("two thousand more");
        assert_eq!(
            error.to_string(),
            "the grid has 12000 cells, expected at most 10000\n  in g.toml"
        );
        assert_eq!(error.exit_code(), exit::USAGE);
    }

    #[test]
    fn each_mistake_has_one_clear_error() {
        let many_seeds = seeds(150_000);
        let cases = [
            (
                "width = 4",
                "width = 0",
                "`grid.width` is `0`, expected a whole number from 1 to 512\n  in g.toml, line 4",
                "",
            ),
            (
                "width = 4",
                "widht = 4",
                "unknown key `grid.widht`\n  in g.toml, line 4",
                "did you mean `grid.width`?",
            ),
            (
                "width = 4",
                "width = \"4\"",
                "`grid.width` is a string, expected an integer\n  in g.toml, line 4",
                "",
            ),
            (
                "train_limit = 100",
                "precision = \"fp16\"",
                "`grid.precision` is `fp16`, expected `f32`, `bf16` or `tf32`\n  in g.toml, line 7",
                "",
            ),
            (
                "train_limit = 100",
                "asr_floor = 50",
                "`grid.asr_floor` is `50`, expected a share of 0 to 1\n  in g.toml, line 7",
                "",
            ),
            (
                "train_limit = 100",
                "asr_floor = nan",
                "`grid.asr_floor` is `nan`, expected a finite number\n  in g.toml, line 7",
                "",
            ),
            (
                "[3, 1]",
                "[3, 3]",
                "`grid.seeds[1]` is `3`, expected each seed once\n  in g.toml, line 5",
                "",
            ),
            (
                "[3, 1]",
                "[-1]",
                "`grid.seeds[0]` is `-1`, expected a whole number, 0 or more\n  in g.toml, line 5",
                "",
            ),
            (
                "[3, 1]",
                "[]",
                "`grid.seeds[0]` is missing, expected at least one integer\n  in g.toml, line 1",
                "",
            ),
            (
                "[3, 1]",
                "3",
                "`grid.seeds` is an integer, expected an array of integers\n  in g.toml, line 5",
                "",
            ),
            (
                "[3, 1]",
                &many_seeds,
                "`grid.seeds[1000]` is `1000`, expected at most 1000 seeds\n  in g.toml, line 5",
                "",
            ),
            (
                "name = \"small\"",
                "",
                "`grid.name` is missing, expected a string\n  in g.toml, line 1",
                "",
            ),
            (
                "\"small\"",
                "\" \"",
                "`grid.name` is ` `, expected a word\n  in g.toml, line 2",
                "",
            ),
            (
                "[grid]",
                "[gird]",
                "unknown key `gird`\n  in g.toml, line 1",
                "did you mean `grid`?",
            ),
            (
                "[[defense]]",
                "[[defence]]",
                "unknown key `defence`\n  in g.toml, line 18",
                "did you mean `defense`?",
            ),
            (
                "[[defense]]",
                "[defense]",
                "`defense` is a table, expected an array of tables\n  in g.toml, line 18",
                "",
            ),
            (
                "method = \"tsbd\"",
                "methods = \"tsbd\"",
                "unknown key `defense[0].methods`\n  in g.toml, line 19",
                "did you mean `defense[0].method`?",
            ),
            (
                "method = \"tsbd\"",
                "",
                "`defense[0].method` is missing, expected a string\n  in g.toml, line 18",
                "",
            ),
            (
                "set.n = 0.3",
                "set = 3",
                "`defense[0].set` is an integer, expected a table\n  in g.toml, line 20",
                "",
            ),
            (
                "set.n = 0.3",
                "config = \"a\"",
                "`defense[0].config` is a string, expected an array of strings\n  in g.toml, line 20",
                "",
            ),
            (
                "label = \"BadNets 5 %\"",
                "label = \"BADNETS\"",
                "two entries are called `BADNETS`\n  in g.toml, lines 9 and 14",
                "give one of them a `label` of its own",
            ),
            (
                "width = 4",
                "width = = 4",
                "not valid TOML: extra `=`, expected nothing\n  in g.toml, line 4",
                "",
            ),
        ];
        for (from, to, expect, hint) in cases {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD, "{from}");
            let error = Grid::parse("g.toml", &text).expect_err(to);
            assert_eq!(
                (
                    error.to_string().as_str(),
                    error.hint().as_deref().unwrap_or("")
                ),
                (expect, hint),
                "{to}"
            );
            assert_eq!(error.exit_code(), exit::USAGE);
        }
        let error = Grid::parse("g.toml", &GOOD.replace("\"synthetic\"", "\"synthetik\""))
            .expect_err("no such set");
        assert!(
            error
                .to_string()
                .starts_with("`grid.dataset` is `synthetik`, expected a dataset"),
            "{error}"
        );
        let end = GOOD.find("[[attack]]").expect("it is there");
        let error = Grid::parse("g.toml", &GOOD[..end]).expect_err("no attack");
        assert_eq!(
            error.to_string(),
            "the grid has no `[[attack]]` and no `[[model]]`\n  in g.toml"
        );
    }
}
