//! The command line of `bb-eval`.
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bb_core::cli::{self, Device, Failure};
use bb_core::events::Log;
use bb_core::metrics::{Ratio, Scores};
use bb_defense::method::AnyDefense;
use bb_nn::Compute;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::Value;

use crate::analyze::{self, command::AnalyzeCommand};
use crate::grid::Grid;
use crate::plan;
use crate::prepare::{Places, Prepared};
use crate::table::{self, Layout, Table};
use crate::zoo::{self, ImportRequest};
use crate::{collect, run, verify};

/// Compare backdoor attacks and defenses
///
/// A grid file says which attacks meet which defenses; `run` does what is missing and prints the table.
#[derive(Parser, Debug)]
#[command(name = "bb-eval", version, disable_help_subcommand = true)]
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
        /// One row per attack and defense, or the defenses side by side; CSV is always long
        #[arg(long, value_enum, default_value_t = LayoutArg::Long)]
        layout: LayoutArg,
        #[command(flatten)]
        places: PlaceArgs,
    },
    /// Measure the model of a cell again; prints one line of JSON, and fails if the manifest says something else
    Metrics {
        /// Folder or manifest of an attack's or a defense's result
        #[arg(value_name = "CELL")]
        cell: PathBuf,
        /// Folder with the datasets
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
        /// The attack that a defense repaired, if it has been moved
        #[arg(long, value_name = "CELL")]
        attack: Option<PathBuf>,
        #[command(flatten)]
        machine: MachineArgs,
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
    Import {
        /// Folder with `attack_result.pt`, or a PyTorch file (`.pt`, `.pth`)
        #[arg(value_name = "PATH")]
        path: PathBuf,
        /// Name of the dataset
        #[arg(long, value_name = "NAME")]
        dataset: String,
        /// Folder with the datasets
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
        /// Architecture, for a file that does not name it
        #[arg(long, value_name = "NAME")]
        arch: Option<String>,
        /// Name of the attack that the cell is filed under [default: `imported`, or `clean` without poisoned images]
        #[arg(long, value_name = "NAME")]
        attack: Option<String>,
        /// Folder for the results
        #[arg(long, value_name = "DIR", default_value = "runs")]
        out: PathBuf,
        #[command(flatten)]
        machine: MachineArgs,
    },
    /// Show what a PyTorch file holds, without running anything in it
    Scan {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

#[derive(Args, Debug)]
struct PlaceArgs {
    /// Folder with the datasets [default: that of the grid]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Folder for the results [default: that of the grid, or `runs`]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct MachineArgs {
    /// Where to compute: auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Auto)]
    device: Device,
    /// Number of threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
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

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// Aligned text, for a terminal
    Text,
    /// Markdown
    #[value(alias = "markdown")]
    Md,
    /// CSV with numerators and denominators, unrounded
    Csv,
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
            quiet,
        } => {
            // Opening the data uses the threads already.
            let compute = machine.start(quiet)?;
            let prepared = places.prepare(&grid, extra)?;
            let outcome = run::run(&prepared, &compute, quiet)?;
            cli::print(&table::text::write(&outcome.table, Layout::Long))?;
            outcome.into_result()
        }
        Command::Plan { grid, places } => {
            let prepared = places.prepare(&grid, extra)?;
            let steps = plan::plan(&prepared)?;
            cli::print(&plan::show(&prepared, &steps))
        }
        Command::Table {
            source,
            format,
            layout,
            places,
        } => {
            let tables = tables(&source, places, extra)?;
            let layout = match layout {
                LayoutArg::Long => Layout::Long,
                LayoutArg::Wide => Layout::Wide,
            };
            cli::print(&write(&tables, format, layout))
        }
        Command::Metrics {
            cell,
            data,
            attack,
            machine,
        } => {
            let compute = machine.start(false)?;
            let verified = verify::verify(&cell, data.as_deref(), attack.as_deref(), &compute)?;
            cli::print(&verified.to_json())?;
            if verified.agree() {
                return Ok(());
            }
            let count = |ratio: Ratio| match ratio.total {
                0 => "none".to_owned(),
                _ => ratio.to_string(),
            };
            let say = |s: &Scores| {
                format!(
                    "ACC {}, ASR {}, RA {}",
                    count(s.acc),
                    count(s.asr),
                    count(s.ra)
                )
            };
            let (expected, found) = (say(&verified.expected), say(&verified.found));
            Err(Failure::check(format!(
                "the manifest of `{}` says {expected}, found {found}",
                cell.display()
            )))
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
            out,
            machine,
        } => {
            let compute = machine.start(false)?;
            let request = ImportRequest {
                path,
                dataset,
                data,
                arch,
                attack,
                out,
            };
            let (cell, report) = zoo::import(&request, &compute)?;
            let text = format!("tensors: {report}");
            Log::new(false).info("imported", &text, &Value::Null)?;
            cli::print(&format!("{}\n", cell.dir.display()))
        }
        ZooCommand::Scan { file } => cli::print(&zoo::scan(&file)?),
    }
}

fn tables(
    source: &Path,
    places: PlaceArgs,
    extra: &[&'static dyn AnyDefense],
) -> Result<Vec<Table>, Failure> {
    if source.is_dir() {
        if places.out.is_some() || places.data.is_some() {
            return Err(Failure::usage(
                "`--out` and `--data` go with a grid file, and a folder of results was given",
            ));
        }
        return Ok(collect::from_folder(source, extra)?);
    }
    let prepared = places.prepare(source, extra).map_err(|failure| {
        // A table of what is there needs neither the grid nor the data.
        if failure.exit_code() == cli::exit::INPUT && source.is_file() {
            return failure
                .hint("give the folder of results instead of the grid to do without the data");
        }
        failure
    })?;
    let steps = plan::plan(&prepared)?;
    Ok(vec![collect::from_steps(&prepared, &steps)?])
}

fn write(tables: &[Table], format: Format, layout: Layout) -> String {
    let each = |write: fn(&Table, Layout) -> String| {
        tables
            .iter()
            .map(|t| write(t, layout))
            .collect::<Vec<_>>()
            .join("\n")
    };
    match format {
        Format::Text => each(table::text::write),
        Format::Md => each(table::markdown::write),
        Format::Latex => each(table::latex::write),
        Format::Csv => table::csv::write(tables),
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
        ] {
            let parsed = Program::try_parse_from(["bb-eval", "table", "runs", "--format", word])
                .expect("known");
            assert!(
                matches!(parsed.command, Command::Table { format, .. } if format == expect),
                "{word}"
            );
        }
        assert!(Program::try_parse_from(["bb-eval", "table", "runs", "--format", "html"]).is_err());
        assert!(Program::try_parse_from(["bb-eval", "run", "g.toml", "--threads", "0"]).is_err());
    }
}
