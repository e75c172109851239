//! The program `bb-defense`, and the same for crates that bring defenses of their own.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use bb_core::cell::env::VERSION;
use bb_core::cell::{Cell, CellError, store};
use bb_core::cli::{self, Failure, RunArgs, SHOWN_OPTIONS, init_threads, print};
use bb_core::events::Log;
use bb_core::method::MethodInfo;
use bb_core::precision::Precision;
use bb_core::settings::option_line;
use bb_nn::Compute;
use clap::{CommandFactory as _, FromArgMatches as _, Parser};
use serde_json::{Map, Value, json};

use crate::error::DefenseError;
use crate::harness::{DefenseRequest, SuspectCell, open_suspect, run, show as show_settings};
use crate::method::{AnyDefense, Given};
use crate::registry;

/// Repair backdoored image classifiers
///
/// The result is a folder with the repaired network, the settings and the measurements.
/// One line of JSON on standard output says where it is and what was measured.
#[derive(Parser, Debug)]
#[command(
    name = "bb-defense",
    version = VERSION,
    about,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true,
    arg_required_else_help = true,
    mut_arg("dataset", |arg| arg.help("Dataset of the model; another one is refused")),
    mut_arg("arch", |arg| arg.help("Architecture of the model; another one is refused")),
    mut_arg("width", |arg| arg.help("Channels of the model's first stage; others are refused"))
)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// The defense; `bb-defense list` names them
    #[arg(required = true, value_name = "METHOD")]
    method: Option<String>,
    /// The attack's result, which holds the suspect model: its folder, or the first digits of its id
    #[arg(long, required = true, value_name = "CELL")]
    model: Option<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// List the defenses
    List,
    /// Explain a defense and its settings
    Show {
        /// The defense
        method: String,
    },
}

/// The whole of a binary's `main`: this crate's defenses, and `extra` ones.
///
/// ```no_run
/// // In another crate: `bb_defense::cli::main_with(&[&Foo])`.
/// bb_defense::cli::main_with(&[]);
/// ```
pub fn main_with(extra: &'static [&'static dyn AnyDefense]) -> ExitCode {
    let matches = Args::command().after_help(names(extra)).get_matches();
    let args = Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    cli::main(|| execute(args, extra))
}

/// The defenses, for the end of the help.
fn names(extra: &'static [&'static dyn AnyDefense]) -> String {
    let all = registry::all(extra);
    let ids: Vec<&str> = all.iter().map(|defense| defense.info().id).collect();
    format!("Methods: {}", ids.join(", "))
}

fn execute(args: Args, extra: &'static [&'static dyn AnyDefense]) -> Result<(), Failure> {
    match args.command {
        Some(Command::List) => return print(&list(extra)),
        Some(Command::Show { method }) => return print(&show(registry::find(&method, extra)?)?),
        None => {}
    }
    let (Some(method), Some(model)) = (args.method, args.model) else {
        return Err(Failure::usage("a defense and `--model` are needed"));
    };
    let defense = registry::find(&method, extra)?;
    let given = Given {
        files: args.run.config.clone(),
        set: args.run.set.clone(),
    };
    if args.run.precision != Precision::F32 && !defense.trains() {
        let (precision, title) = (args.run.precision.name(), defense.info().title);
        return Err(Failure::usage(format!(
            "`--precision {precision}` does nothing here, because {title} trains no network"
        ))
        .hint("leave it out"));
    }
    let model = store::find(&args.run.host.out, &model)?;
    let suspect = open_suspect(&model)?;
    check_options(&args.run, &suspect)?;
    let compute = Compute::open(args.run.host.device)?;
    let choice = compute.choice(args.run.host.device);
    let request = DefenseRequest {
        defense,
        model,
        data: args.run.host.data.clone(),
        given,
        precision: args.run.precision,
        compute,
        seed: args.run.seed,
        out: args.run.host.out.clone(),
        cache: Some(args.run.host.out.join("cache")),
        quiet: args.run.host.quiet,
    };
    if args.run.show_config {
        let settings = show_settings(&request)?;
        return print(&(shown_options(&args.run, &suspect)? + &settings));
    }
    if let Some(text) = choice {
        Log::new(args.run.host.quiet).info("device", &text, &Value::Null)?;
    }
    init_threads(args.run.host.threads)?;
    print(&report(&run(&request)?))
}

/// The lines of `--show-config` for what is no setting.
fn shown_options(run: &RunArgs, suspect: &SuspectCell) -> Result<String, CellError> {
    let manifest = &suspect.cell.manifest;
    let line = |name: &str, value: Value| option_line(name, &value, "of the model");
    let limit = |name: &str, limit: Option<usize>| match limit {
        None => line(name, json!("all")),
        Some(limit) => line(name, json!(limit)),
    };
    let limits = suspect.cell.limits()?;
    Ok([
        SHOWN_OPTIONS.to_owned(),
        line("dataset", json!(manifest.dataset)),
        line("arch", json!(suspect.network.arch)),
        line("width", json!(suspect.network.width)),
        limit("train_limit", limits.train_limit),
        limit("test_limit", limits.test_limit),
        run.shown(),
        "\n".to_owned(),
    ]
    .concat())
}

/// An option that names what the suspect model already fixes must name the same.
fn check_options(run: &RunArgs, suspect: &SuspectCell) -> Result<(), DefenseError> {
    let pairs = [
        (
            "dataset",
            run.dataset.clone(),
            suspect.cell.manifest.dataset.clone(),
        ),
        ("arch", run.arch.clone(), suspect.network.arch.clone()),
        (
            "width",
            run.width.map(|width| width.to_string()),
            suspect.network.width.to_string(),
        ),
    ];
    for (option, found, expected) in pairs {
        if let Some(found) = found.filter(|found| *found != expected) {
            return Err(DefenseError::OtherModel {
                option,
                found,
                expected,
            });
        }
    }
    Ok(())
}

/// The result as one line of JSON: where it is, and what the manifest says was found.
fn report(cell: &Cell) -> String {
    let mut line = Map::from_iter([("cell".to_owned(), json!(cell.dir))]);
    if let Value::Object(results) = &cell.manifest.results {
        line.extend(results.clone());
    }
    format!("{}\n", Value::Object(line))
}

fn list(extra: &'static [&'static dyn AnyDefense]) -> String {
    let infos: Vec<&MethodInfo> = registry::all(extra)
        .iter()
        .map(|defense| defense.info())
        .collect();
    let width = infos.iter().map(|info| info.id.len()).max().unwrap_or(0);
    let mut text = String::new();
    for info in infos {
        writeln!(
            text,
            "{:width$}  {} ({})",
            info.id,
            info.summary,
            info.needs.describe()
        )
        .expect("strings take all");
    }
    text
}

/// The head comment of a method, with its default settings.
fn show(defense: &dyn AnyDefense) -> Result<String, DefenseError> {
    // No dataset has an empty name, so these are the defaults of the code.
    let defaults = defense.resolve("", &Given::default())?;
    Ok(defense.info().page(&defaults.to_toml()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_word_is_a_method_or_a_command() {
        let parse = |words: &[&str]| Args::try_parse_from([&["bb-defense"], words].concat());
        let args =
            parse(&["tsbd", "--model", "m", "--set", "sweep=true", "--seed", "3"]).expect("a run");
        assert!(args.command.is_none());
        assert_eq!(
            (args.method.as_deref(), args.run.seed, args.run.set.len()),
            (Some("tsbd"), 3, 1)
        );
        assert!(matches!(
            parse(&["list"]).expect("a command").command,
            Some(Command::List)
        ));
        assert!(matches!(
            parse(&["show", "tsbd"]).expect("a command").command,
            Some(Command::Show { .. })
        ));
        for wrong in [
            &["tsbd"][..],
            &["--model", "m"],
            &["list", "--model", "m"],
            &["show"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
