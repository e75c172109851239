//! The command line of `bb-eval`.
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bb_attack::results::AttackResults;
use bb_core::cell::env::VERSION;
use bb_core::cell::{Cell, CellError, Kind, store};
use bb_core::cli::{self, Device, Failure};
use bb_core::data::DataError;
use bb_core::events::Log;
use bb_defense::method::AnyDefense;
use bb_nn::Compute;
use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::Value;

use crate::analyze::{self, command::AnalyzeCommand};
use crate::cells::{self, Filter};
use crate::grid::Grid;
use crate::paper::{DEFAULT_PAPER, Paper};
use crate::part::{Part, Shard};
use crate::plan::{self, Step};
use crate::prepare::{Places, Prepared};
use crate::run::{self, OnFailure};
use crate::table::{self, COLUMNS, Layout, Selection, Table, View};
use crate::zoo::published::{self, CheckRequest, GetRequest};
use crate::zoo::tensors::RuleError;
use crate::zoo::{self, ExportRequest, ImportRequest, RepairedRequest, Rules};
use crate::{collect, explain, verify};

/// Compare backdoor attacks and defenses
///
/// A grid file says which attacks meet which defenses; `run` does what is missing and prints the table.
#[derive(Parser, Debug)]
#[command(name = "bb-eval", version = VERSION, disable_help_subcommand = true)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run what a grid asks for, and print the table
    Run {
        /// Grid file
        #[arg(value_name = "GRID")]
        grid: PathBuf,
        #[command(flatten)]
        places: PlaceArgs,
        #[command(flatten)]
        machine: MachineArgs,
        /// Wait for cells that other processes work on; this is the default
        #[arg(long, overrides_with = "no_wait")]
        wait: bool,
        /// End with exit code 75 if only cells are left that other processes work on
        #[arg(long, overrides_with = "wait")]
        no_wait: bool,
        /// Compute cells again that failed in an earlier run
        #[arg(long)]
        retry: bool,
        /// Begin no cell after one that failed
        #[arg(long)]
        fail_fast: bool,
        #[command(flatten)]
        part: PartArgs,
        /// No progress and no log lines, only warnings and errors
        #[arg(short, long)]
        quiet: bool,
    },
    /// List the cells of a grid in the order in which they run, and how much of each is there
    Plan {
        /// Grid file
        #[arg(value_name = "GRID")]
        grid: PathBuf,
        #[command(flatten)]
        part: PartArgs,
        #[command(flatten)]
        places: PlaceArgs,
    },
    /// Print the table of a grid, or of everything that is complete in a folder of results
    Table {
        /// Grid file, or folder of results
        #[arg(value_name = "GRID|DIR")]
        source: PathBuf,
        /// How to write it
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
        #[command(flatten)]
        view: ViewArgs,
        /// Whose numbers to compare with: a name, or a file as those in `docs/papers` [default: that of the grid, or
        /// tsbd]
        #[arg(long, value_name = "NAME|FILE")]
        paper: Option<String>,
        #[command(flatten)]
        places: PlaceArgs,
    },
    /// Compute again what a cell claims; prints one line of JSON, and fails if the manifest says something else
    ///
    /// The scores are those of the cell's own model; `checked` names what else was computed again, such as the scores
    /// before a repair, and `unchecked` what the files of the cell do not allow.
    #[command(alias = "metrics")]
    Verify {
        /// Result of an attack or a defense: its folder, or the first digits of its id
        #[arg(value_name = "CELL")]
        cell: PathBuf,
        #[command(flatten)]
        store: StoreArgs,
        /// Folder with the datasets
        #[arg(long, value_name = "DIR", env = cli::DATA_ENV, hide_env_values = true)]
        data: Option<PathBuf>,
        /// The attack that a defense repaired, if it has been moved; for any other model, the attack whose test images
        /// it is to be measured on
        #[arg(long, value_name = "CELL")]
        attack: Option<PathBuf>,
        #[command(flatten)]
        machine: MachineArgs,
    },
    /// List the cells of a folder of results
    Ls {
        /// Folder of results
        #[arg(value_name = "DIR", default_value = store::DEFAULT)]
        dir: PathBuf,
        /// Only attacks, or only defenses
        #[arg(long, value_enum)]
        kind: Option<KindArg>,
        /// Only this attack or defense
        #[arg(long, value_name = "NAME")]
        method: Option<String>,
        /// Only this dataset
        #[arg(long, value_name = "NAME")]
        dataset: Option<String>,
        /// Only this network, with or without its width
        #[arg(long, value_name = "NAME")]
        arch: Option<String>,
        /// Only complete cells with this seed
        #[arg(long, value_name = "N")]
        seed: Option<u64>,
        /// Only cells of which so much is there
        #[arg(long, value_parser = PossibleValuesParser::new(["complete", "partial", "failed", "damaged"]))]
        state: Option<String>,
        /// Only the attack whose id begins with these digits, and its repairs
        #[arg(long, value_name = "ID")]
        attack: Option<String>,
        /// One object of JSON on a line for each cell
        #[arg(long)]
        json: bool,
    },
    /// Say how the numbers of a cell came about: counts, choices, settings with their origins, the run
    Explain {
        /// Result of an attack or a defense: its folder, or the first digits of its id
        #[arg(value_name = "CELL")]
        cell: PathBuf,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Say what differs between two cells: settings, inputs, results, files
    Diff {
        /// A cell: its folder, or the first digits of its id
        #[arg(value_name = "A")]
        a: PathBuf,
        /// Another one
        #[arg(value_name = "B")]
        b: PathBuf,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Models that others published
    #[command(subcommand)]
    Zoo(ZooCommand),
    /// Look into a backdoored model, knowing its trigger: tables, a figure, and one line of JSON
    #[command(subcommand)]
    Analyze(AnalyzeCommand),
}

#[derive(Subcommand, Debug)]
enum ZooCommand {
    /// Make an attack's cell of a folder of BackdoorBench, or a clean one of a bare state dictionary; prints its folder
    ///
    /// ACC is of all clean test images, ASR and RA of the poisoned ones that the folder has.
    Import {
        /// Folder with `attack_result.pt`, a PyTorch file (`.pt`, `.pth`) or a `.safetensors` file
        #[arg(value_name = "PATH")]
        path: PathBuf,
        /// Name of the dataset [default: the one that the file, or the `model.json` beside it, names]
        #[arg(long, value_name = "NAME")]
        dataset: Option<String>,
        /// Folder with the datasets
        #[arg(long, value_name = "DIR", env = cli::DATA_ENV, hide_env_values = true)]
        data: Option<PathBuf>,
        /// Architecture, for a file that does not name it
        #[arg(long, value_name = "NAME", conflicts_with = "attack_cell")]
        arch: Option<String>,
        /// Name of the attack that the cell is filed under [default: `imported`, or `clean` without poisoned images]
        #[arg(long, value_name = "NAME", conflicts_with = "attack_cell")]
        attack: Option<String>,
        /// The same for an attack that is not known here; tables have no row for it to be compared with
        #[arg(long, value_name = "NAME", conflicts_with_all = ["attack", "attack_cell"])]
        attack_name: Option<String>,
        /// The file holds what a defense made of this attack: make the defense's cell
        #[arg(long, value_name = "CELL")]
        attack_cell: Option<PathBuf>,
        /// Name of the defense that the cell is filed under [default: `imported`]
        #[arg(long, value_name = "NAME", requires = "attack_cell")]
        defense: Option<String>,
        /// Measure on this split of the dataset, by the name of its folder or files [default: test, or else val, valid
        /// or validation]
        #[arg(long, value_name = "NAME", conflicts_with = "attack_cell")]
        test_split: Option<String>,
        /// Measure on the first N images of the test split only
        #[arg(long, value_name = "N", conflicts_with = "attack_cell", value_parser = cli::limit)]
        #[arg(allow_negative_numbers = true)]
        test_limit: Option<usize>,
        /// Find the row of each picture of a record, because the dataset stands in another order
        #[arg(long, conflicts_with = "attack_cell")]
        match_rows: bool,
        #[command(flatten)]
        names: Box<NameArgs>,
        /// JSON file for the names of all tensors: loaded, missing, unused, mismatched, ignored
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
        /// Folder of results
        #[arg(long = "store", alias = "out", value_name = "DIR", default_value = store::DEFAULT)]
        out: PathBuf,
        #[command(flatten)]
        machine: MachineArgs,
    },
    /// Write a cell for other programs, into a folder that does not exist yet; prints its name
    Export {
        /// Result of an attack or a defense: its folder, or the first digits of its id
        #[arg(value_name = "CELL")]
        cell: PathBuf,
        #[command(flatten)]
        store: StoreArgs,
        /// What to write
        #[arg(long, value_enum)]
        format: ExportFormat,
        /// Folder with the datasets, for the folder of an attack
        #[arg(long, value_name = "DIR", env = cli::DATA_ENV, hide_env_values = true)]
        data: Option<PathBuf>,
        /// Folder to make; for BackdoorBench it belongs into `record/` there, under this name
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// List the published models
    List {
        /// An index file, instead of the index that is built in
        #[arg(long, value_name = "FILE")]
        index: Option<PathBuf>,
    },
    /// Fetch a published model; prints its folder
    ///
    /// A broken download is continued. The file appears when its size and its SHA-256 are those of the index.
    Get {
        /// Name of the model, see `bb-eval zoo list`
        #[arg(value_name = "ID")]
        id: String,
        /// An index file, instead of the index that is built in
        #[arg(long, value_name = "FILE")]
        index: Option<PathBuf>,
        /// Path or address of the checkpoint, instead of those in the index
        #[arg(long, value_name = "SOURCE")]
        from: Option<String>,
        /// Folder for fetched models
        #[arg(long, value_name = "DIR", default_value = published::DIR)]
        dir: PathBuf,
        /// No progress
        #[arg(short, long)]
        quiet: bool,
    },
    /// Measure a published model again; prints one line of JSON, and fails if the index says something else
    Verify {
        /// Name of the model, see `bb-eval zoo list`
        #[arg(value_name = "ID")]
        id: String,
        /// An index file, instead of the index that is built in
        #[arg(long, value_name = "FILE")]
        index: Option<PathBuf>,
        /// Folder for fetched models
        #[arg(long, value_name = "DIR", default_value = published::DIR)]
        dir: PathBuf,
        /// Folder with the datasets
        #[arg(long, value_name = "DIR", env = cli::DATA_ENV, hide_env_values = true)]
        data: Option<PathBuf>,
        /// Where in the file the network lies, dotted
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
        /// All test images, not the first 200
        #[arg(long)]
        full: bool,
        #[command(flatten)]
        machine: MachineArgs,
    },
    /// Say what a file of tensors is and show what it holds, without running anything in it
    Scan {
        /// A PyTorch or safetensors file, or a folder with `attack_result.pt`
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Where in the file the network lies, dotted
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
        /// Up to 5000 lines, not one page
        #[arg(long)]
        all: bool,
    },
}

/// Which tensors of a file are meant, and what they are called.
#[derive(Args, Debug)]
struct NameArgs {
    /// Where in the file the network lies, dotted, such as `state_dict` or `ema.model`; of a record, the network alone
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// What tensors are called here: names that begin with FROM begin with TO instead; may be repeated
    ///
    /// A beginning that all names have needs no rule, such as `module.`, `_orig_mod.` or `model.`
    #[arg(long, value_name = "FROM=TO")]
    rename: Vec<String>,
    /// A TOML file with such rules, used after those of the command line
    #[arg(long, value_name = "FILE")]
    rename_file: Option<PathBuf>,
    /// Leave out tensors whose names begin so; may be repeated
    #[arg(long, value_name = "START")]
    ignore: Vec<String>,
}

impl NameArgs {
    fn rules(self) -> Result<Rules, RuleError> {
        let mut rules = Rules {
            ignore: self.ignore,
            ..Rules::default()
        };
        for rule in &self.rename {
            rules.add(rule)?;
        }
        if let Some(path) = self.rename_file {
            rules.read(&path)?;
        }
        Ok(rules)
    }
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum ExportFormat {
    /// `attack_result.pt` with its pictures, `defense_result.pt` or `clean_model.pth`
    Backdoorbench,
    /// `model.pth`, which `torch.load(weights_only=True)` reads, and `model.json`
    StateDict,
    /// `model.safetensors` and `model.json`
    Safetensors,
}

#[derive(Args, Debug)]
struct PlaceArgs {
    /// Folder with the datasets [default: that of the grid]
    #[arg(long, value_name = "DIR", env = cli::DATA_ENV, hide_env_values = true)]
    data: Option<PathBuf>,
    /// Folder of results, which grids share [default: that of the grid, or `runs`]
    #[arg(long = "store", alias = "out", value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Where a cell is looked for that is named by its id.
#[derive(Args, Debug)]
pub(crate) struct StoreArgs {
    /// Folder of results, in which a cell is looked for that is named by the first digits of its id
    #[arg(long, value_name = "DIR", default_value = store::DEFAULT)]
    store: PathBuf,
}

impl StoreArgs {
    /// The folder of a cell.
    pub(crate) fn find(&self, name: &Path) -> Result<PathBuf, CellError> {
        store::find(&self.store, name)
    }
}

#[derive(Args, Debug)]
pub(crate) struct MachineArgs {
    /// Where to compute: auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Auto)]
    device: Device,
    /// Number of threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = cli::threads, allow_negative_numbers = true)]
    threads: Option<NonZeroUsize>,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum KindArg {
    /// Attacks and imported models
    Attack,
    /// Repairs
    Defense,
}

impl From<KindArg> for Kind {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Attack => Self::Attack,
            KindArg::Defense => Self::Defense,
        }
    }
}

/// Which cells of a grid.
#[derive(Args, Debug)]
struct PartArgs {
    /// Only cells of this attack or defense, by its name or its label in the table; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Only the I-th of N parts, which have no cell in common: each has every N-th attack and seed, with all repairs
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
}

impl From<PartArgs> for Part {
    fn from(PartArgs { only, shard }: PartArgs) -> Self {
        Self { only, shard }
    }
}

impl MachineArgs {
    /// Opens the device, says which if there was a choice, and starts the threads.
    pub(crate) fn start(&self, quiet: bool) -> Result<Compute, Failure> {
        let compute = Compute::open(self.device)?;
        if let Some(text) = compute.choice(self.device) {
            Log::new(quiet).info("device", &text, &Value::Null)?;
        }
        cli::init_threads(self.threads)?;
        Ok(compute)
    }
}

/// What is shown of a table, and how.
#[derive(Args, Debug)]
struct ViewArgs {
    /// One row per attack and defense, or the defenses side by side, all or some at a time [default: long]
    #[arg(long, value_enum)]
    layout: Option<LayoutArg>,
    /// Show these metrics: acc, asr, ra, der [default: all; of the layout `paper` acc, asr, der]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = PossibleValuesParser::new(COLUMNS))]
    metrics: Vec<String>,
    /// Only these attacks, by name or label; averages and best values are of what is shown
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    attacks: Vec<String>,
    /// Only these defenses, by name or label
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    defenses: Vec<String>,
    /// Caption of a LaTeX table, which floats then
    #[arg(long, value_name = "TEXT")]
    caption: Option<String>,
    /// What refers to a LaTeX table, which floats then
    #[arg(long, value_name = "NAME")]
    label: Option<String>,
}

impl ViewArgs {
    /// Refuses what a format does not show.
    fn view(self, format: Format) -> Result<(View, Selection), Failure> {
        let whole = matches!(format, Format::Csv | Format::Json);
        let latex = format == Format::Latex;
        for (option, given, shown) in [
            (
                "--layout",
                self.layout.is_some_and(|layout| layout != LayoutArg::Long),
                !whole,
            ),
            ("--metrics", !self.metrics.is_empty(), !whole),
            ("--caption", self.caption.is_some(), latex),
            ("--label", self.label.is_some(), latex),
        ] {
            if given && !shown {
                let name = format.to_possible_value().map(|v| v.get_name().to_owned());
                let name = name.unwrap_or_default();
                let message = format!("`{option}` does nothing with `--format {name}`");
                return Err(Failure::usage(message).hint("leave it out"));
            }
        }
        let layout = match self.layout {
            Some(LayoutArg::Wide) => Layout::Wide,
            Some(LayoutArg::Paper) => Layout::Paper,
            Some(LayoutArg::Long) | None => Layout::Long,
        };
        let (caption, label) = (self.caption, self.label);
        let mut view = View {
            caption,
            label,
            ..layout.into()
        };
        if !self.metrics.is_empty() {
            view.metrics = (0..COLUMNS.len())
                .filter(|i| self.metrics.iter().any(|name| name == COLUMNS[*i]))
                .collect();
        }
        let (attacks, defenses) = (self.attacks, self.defenses);
        Ok((view, Selection { attacks, defenses }))
    }
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// Aligned text, for a terminal
    Text,
    /// Markdown
    #[value(alias = "markdown")]
    Md,
    /// CSV with numerators and denominators, unrounded
    Csv,
    /// JSON with all that the other formats have, unrounded
    Json,
    /// A page of HTML
    Html,
    /// LaTeX with booktabs
    #[value(alias = "tex")]
    Latex,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum LayoutArg {
    /// One row per attack and defense, with the paper's numbers
    Long,
    /// One row per attack, the defenses side by side
    Wide,
    /// One row per attack, five defenses at a time, as papers print it
    Paper,
}

impl PlaceArgs {
    fn prepare(self, grid: &Path, extra: &[&'static dyn AnyDefense]) -> Result<Prepared, Failure> {
        let places = Places {
            data: self.data,
            out: self.out,
        };
        Prepared::new(Grid::load(grid)?, &places, extra)
    }
}

/// The whole of a binary's `main`: the defenses of `bb-defense`, and `extra` ones.
///
/// ```no_run
/// // In another crate: `bb_eval::main_with(&[&Foo])`.
/// bb_eval::main_with(&[]);
/// ```
pub fn main_with(extra: &'static [&'static dyn AnyDefense]) -> ExitCode {
    let program = Program::parse();
    cli::main(|| execute(program.command, extra))
}

fn execute(command: Command, extra: &[&'static dyn AnyDefense]) -> Result<(), Failure> {
    match command {
        Command::Run {
            grid,
            places,
            machine,
            wait: _,
            no_wait,
            retry,
            fail_fast,
            part,
            quiet,
        } => {
            // Opening the data uses the threads already.
            let compute = machine.start(quiet)?;
            let prepared = places.prepare(&grid, extra)?;
            let options = run::Options {
                quiet,
                wait: !no_wait,
                retry,
                on_failure: if fail_fast {
                    OnFailure::Stop
                } else {
                    OnFailure::GoOn
                },
                part: part.into(),
            };
            let outcome = run::run(&prepared, &compute, options)?;
            cli::print(&table::text::write(&outcome.table, &View::default()))?;
            outcome.into_result()
        }
        Command::Plan { grid, part, places } => {
            let prepared = places.prepare(&grid, extra)?;
            let steps = plan::plan(&prepared)?;
            let asked = Part::from(part).of(&prepared, &steps)?;
            let steps = steps.into_iter().zip(asked);
            let steps: Vec<Step> = steps
                .filter_map(|(step, asked)| asked.then_some(step))
                .collect();
            cli::print(&(plan::show(&prepared, &steps) + &plan::lacking(&prepared)))
        }
        Command::Table {
            source,
            format,
            view,
            paper,
            places,
        } => {
            let (view, selection) = view.view(format)?;
            let paper = paper.as_deref().map(Paper::open).transpose()?;
            let tables = tables(&source, places, extra, paper, &selection)?;
            // The other formats say it below the table.
            if format == Format::Csv {
                for line in tables.iter().flat_map(|table| &table.left_out) {
                    Log::new(false).warn("table", line, &Value::Null)?;
                }
            }
            cli::print(&write(&tables, format, &view))
        }
        Command::Verify {
            cell,
            store,
            data,
            attack,
            machine,
        } => {
            let cell = store.find(&cell)?;
            let attack = attack.map(|attack| store.find(&attack)).transpose()?;
            let compute = machine.start(false)?;
            let verified = verify::verify(&cell, data.as_deref(), attack.as_deref(), &compute)?;
            cli::print(&verified.to_json())?;
            if verified.agree() {
                return Ok(());
            }
            let (cell, differences) = (cell.display(), verified.differences());
            let differences = differences.join("\n  and ");
            let message = format!("the manifest of `{cell}` {differences}");
            Err(Failure::check(message))
        }
        Command::Ls {
            dir,
            kind,
            method,
            dataset,
            arch,
            seed,
            state,
            attack,
            json,
        } => {
            let filter = Filter {
                kind: kind.map(Kind::from),
                method,
                dataset,
                arch,
                seed,
                state,
                attack,
            };
            let cells = cells::list(&dir, &filter)?;
            cli::print(&if json {
                cells::json_lines(&cells)
            } else {
                cells::show(&cells)
            })
        }
        Command::Explain { cell, store } => {
            let cell = Cell::load(store.find(&cell)?)?;
            cli::print(&explain::explain(&cell, extra)?)
        }
        Command::Diff { a, b, store } => {
            let [a, b] = [Cell::load(store.find(&a)?)?, Cell::load(store.find(&b)?)?];
            cli::print(&explain::diff(&a, &b))
        }
        Command::Zoo(command) => execute_zoo(command),
        Command::Analyze(command) => analyze::command::execute(command),
    }
}

fn execute_zoo(command: ZooCommand) -> Result<(), Failure> {
    match command {
        ZooCommand::Import {
            path,
            dataset,
            data,
            arch,
            attack,
            attack_name,
            attack_cell,
            defense,
            test_split,
            test_limit,
            match_rows,
            mut names,
            report,
            out,
            machine,
        } => {
            let attack = match attack {
                Some(name) => Some(zoo::attack_name(&name)?.to_owned()),
                None => attack_name,
            };
            let key = names.key.take();
            let rules = names.rules()?;
            let compute = machine.start(false)?;
            let (cell, report) = if let Some(attack) = attack_cell {
                let request = RepairedRequest {
                    path,
                    attack: store::find(&out, &attack)?,
                    defense,
                    dataset,
                    data,
                    key,
                    rules,
                    report,
                    out,
                };
                zoo::import_repaired(&request, &compute)?
            } else {
                let request = ImportRequest {
                    path,
                    dataset: dataset.unwrap_or_default(),
                    data,
                    arch,
                    attack,
                    key,
                    rules,
                    report,
                    test_split,
                    test_limit,
                    match_rows,
                    quiet: false,
                    out,
                };
                zoo::import(&request, &compute)?
            };
            let text = format!("tensors: {report}");
            let log = Log::new(false);
            log.info("imported", &text, &Value::Null)?;
            // A repaired model has the images of its attack.
            if cell.manifest.kind == Kind::Attack
                && let Some(images) = AttackResults::of(&cell)?.images
            {
                let text = format!("images: {}", zoo::record::say(&images));
                log.info("imported", &text, &images)?;
            }
            cli::print(&format!("{}\n", cell.dir.display()))
        }
        ZooCommand::Export {
            cell,
            store,
            format,
            data,
            out,
        } => {
            let format = match format {
                ExportFormat::Backdoorbench => zoo::Format::BackdoorBench,
                ExportFormat::StateDict => zoo::Format::StateDict,
                ExportFormat::Safetensors => zoo::Format::Safetensors,
            };
            let exported = zoo::export(&ExportRequest {
                cell: store.find(&cell)?,
                format,
                data,
                out,
            })?;
            let log = Log::new(false);
            for warning in &exported.warnings {
                log.warn("exported", warning, &Value::Null)?;
            }
            cli::print(&format!("{}\n", exported.dir.display()))
        }
        ZooCommand::List { index } => cli::print(&published::list(index.as_deref())?),
        ZooCommand::Get {
            id,
            index,
            from,
            dir,
            quiet,
        } => {
            let request = GetRequest {
                id,
                index,
                from,
                dir,
                quiet,
            };
            cli::print(&format!("{}\n", published::get(&request)?.display()))
        }
        ZooCommand::Verify {
            id,
            index,
            dir,
            data,
            key,
            full,
            machine,
        } => {
            let compute = machine.start(false)?;
            let request = CheckRequest {
                id,
                index,
                dir,
                data,
                key,
                full,
            };
            let checked = published::check(&request, &compute)?;
            cli::print(&checked.to_json())?;
            if checked.agrees() {
                return Ok(());
            }
            Err(Failure::check(format!(
                "`{}` does not score what its index says",
                checked.id
            )))
        }
        ZooCommand::Scan { file, key, all } => cli::print(&zoo::scan(&file, key.as_deref(), all)?),
    }
}

fn tables(
    source: &Path,
    places: PlaceArgs,
    extra: &[&'static dyn AnyDefense],
    paper: Option<Paper>,
    selection: &Selection,
) -> Result<Vec<Table>, Failure> {
    if source.is_dir() {
        if places.out.is_some() || places.data.is_some() {
            return Err(Failure::usage(
                "`--store` and `--data` go with a grid file, and a folder of results was given",
            ));
        }
        let paper = paper.map_or_else(|| Paper::open(DEFAULT_PAPER), Ok)?;
        return Ok(collect::from_folder(source, extra, &paper, selection)?);
    }
    let prepared = places.prepare(source, extra).map_err(|failure| {
        // A table of what is there needs neither the grid nor the data.
        if failure.error().is::<DataError>() {
            return failure.hint(
                "give their folder with `--data DIR`, or the folder of results instead of the grid to do without the data",
            );
        }
        failure
    })?;
    let steps = plan::plan(&prepared)?;
    let paper = paper.as_ref().unwrap_or(&prepared.paper);
    Ok(vec![collect::from_steps(
        &prepared, &steps, paper, selection,
    )?])
}

fn write(tables: &[Table], format: Format, view: &View) -> String {
    let each = |write: fn(&Table, &View) -> String| {
        tables
            .iter()
            .map(|t| write(t, view))
            .collect::<Vec<_>>()
            .join("\n")
    };
    match format {
        Format::Text => each(table::text::write),
        Format::Md => each(table::markdown::write),
        Format::Latex => each(table::latex::write),
        Format::Csv => table::csv::write(tables),
        Format::Json => table::json::write(tables),
        Format::Html => table::html::write(tables, view),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Program::command().debug_assert();
    }

    #[test]
    fn formats_have_the_names_people_try() {
        for (word, expect) in [
            ("text", Format::Text),
            ("md", Format::Md),
            ("markdown", Format::Md),
            ("csv", Format::Csv),
            ("latex", Format::Latex),
            ("tex", Format::Latex),
            ("json", Format::Json),
            ("html", Format::Html),
        ] {
            let parsed = Program::try_parse_from(["bb-eval", "table", "runs", "--format", word])
                .expect("known");
            assert!(
                matches!(parsed.command, Command::Table { format, .. } if format == expect),
                "{word}"
            );
        }
        assert!(Program::try_parse_from(["bb-eval", "table", "runs", "--format", "xlsx"]).is_err());
        let threads = |n: &str| {
            let run = Program::try_parse_from(["bb-eval", "run", "g.toml", "--threads", n]);
            run.map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(threads("256"), Ok(()));
        for wrong in ["0", "257", "1024", "99999", "x"] {
            let error = threads(wrong).expect_err("no number of threads");
            assert!(error.contains("expected a number from 1 to 256"), "{error}");
        }
    }
}
