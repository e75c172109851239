//! The command line of `bb-attack`.

use std::path::PathBuf;

use bb_core::cell::env::VERSION;
use bb_core::cli::{
    self, DEFAULT_ARCH, DEFAULT_DATASET, DEFAULT_WIDTH, Failure, RunArgs, SHOWN_OPTIONS,
};
use bb_core::data::DATASETS;
use bb_core::events::Log;
use bb_core::settings::option_line;
use bb_nn::Compute;
use clap::{Parser, Subcommand};
use serde_json::{Map, Value, json};

use crate::harness::{self, AttackRequest, run};
use crate::method::{AnyAttack, Given};
use crate::preview::{self, PreviewRequest};
use crate::registry::{self, ATTACKS};

/// Train image classifiers with a backdoor
///
/// The result is a folder with the network, the poisoned images, the settings and the measurements.
/// One line of JSON on standard output says where it is and what was measured.
#[derive(Parser, Debug)]
#[command(name = "bb-attack", version = VERSION, disable_help_subcommand = true)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(arg_required_else_help = true, after_help = names())]
#[command(mut_arg("dataset", |arg| arg.help("Dataset to train on [default: cifar10]")))]
#[command(mut_arg("arch", |arg| arg.help("Architecture [default: preactresnet18]")))]
#[command(mut_arg("width", |arg| arg.help("Channels of the first stage [default: 64]")))]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Attack to run; `bb-attack list` lists them
    #[arg(value_name = "METHOD", required = true)]
    method: Option<String>,
    /// Train on the first N images of the dataset only
    #[arg(long, value_name = "N", value_parser = cli::limit, allow_negative_numbers = true)]
    train_limit: Option<usize>,
    /// Measure on the first N images of the dataset only
    #[arg(long, value_name = "N", value_parser = cli::limit, allow_negative_numbers = true)]
    test_limit: Option<usize>,
    /// Measure on this split of the dataset, by the name of its folder or files [default: test, or else val, valid or
    /// validation]
    #[arg(long, value_name = "NAME")]
    test_split: Option<String>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// List the attacks
    List,
    /// Print the documentation and the default settings of an attack
    Show {
        /// The attack
        method: String,
    },
    /// Draw what the trigger of an attack does to a few images, without training the attacked network
    ///
    /// The picture has three rows: images of the test set, the same with the trigger, and the difference times 10 on
    /// grey.
    /// One line of JSON on standard output says how visible the trigger is over all poisoned test images.
    ///
    /// Some triggers are made with a network that is trained first, on the CPU, as long as the settings say; with those
    /// of a real dataset that may take hours:
    ///
    /// `trojan` trains a clean network unless `trigger.file` names a trigger or `trigger.model` a network;
    /// `lf` with `trigger.source=deepfool` does so unless `trigger.model` names a network;
    /// both train for fewer epochs with `trigger.clean_epochs`.
    /// `ssba` trains an encoder unless `trigger.source=file` reads encoded images; `trigger.steps`, or the short recipe
    /// `configs/attack/ssba/short.toml`, makes that shorter.
    ///
    /// A network of `trigger.model` must have the architecture and width that are given here.
    Preview(PreviewArgs),
}

#[derive(clap::Args, Debug)]
struct PreviewArgs {
    /// The attack
    method: String,
    /// Dataset
    #[arg(long, value_name = "ID", default_value = DEFAULT_DATASET)]
    dataset: String,
    /// Folder with the datasets
    #[arg(long, value_name = "DIR", env = cli::DATA_ENV, hide_env_values = true)]
    data: Option<PathBuf>,
    /// Measure on this split of the dataset, by the name of its folder or files [default: test, or else val, valid or
    /// validation]
    #[arg(long, value_name = "NAME")]
    test_split: Option<String>,
    /// Architecture of the network that the trigger is made with, where there is one [default: preactresnet18]
    #[arg(long, value_name = "ID")]
    arch: Option<String>,
    /// Channels of its first stage [default: 64]
    #[arg(long, value_name = "N", value_parser = cli::width, allow_negative_numbers = true)]
    width: Option<usize>,
    /// Number of images to show, at most 32
    #[arg(long, value_name = "N", default_value_t = preview::IMAGES, value_parser = shown)]
    #[arg(allow_negative_numbers = true)]
    images: usize,
    /// PNG file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Settings file, over the recipe of the dataset; may be repeated
    #[arg(short, long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// One setting, over the files; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = cli::seed)]
    #[arg(allow_negative_numbers = true)]
    seed: u64,
}

/// A number of images that a sheet can show.
fn shown(text: &str) -> Result<usize, String> {
    cli::whole(text, 1, preview::MOST_IMAGES)
}

/// What options take, for the end of the help.
fn names() -> String {
    let attacks: Vec<&str> = ATTACKS.iter().map(|attack| attack.info().id).collect();
    let datasets: Vec<&str> = DATASETS.iter().map(|spec| spec.id).collect();
    format!(
        "Methods: {}\nDatasets: {}\nArchitectures: {}",
        attacks.join(", "),
        datasets.join(", "),
        bb_nn::arch::NAMES.join(", "),
    )
}

/// Does what the command line asks for.
pub fn main(args: &Args) -> Result<(), Failure> {
    match (&args.command, &args.method) {
        (Some(Command::List), _) => cli::print(&list()),
        (Some(Command::Show { method }), _) => {
            let attack = registry::find(method)?;
            // A folder of images has no recipe of its own, so these are the defaults.
            let settings = attack.resolve("folder", &Given::default())?.to_toml();
            cli::print(&attack.info().page(&settings))
        }
        (Some(Command::Preview(args)), _) => preview(args),
        (None, Some(method)) => attack(method, args),
        (None, None) => {
            Err(Failure::usage("no attack was named").hint("`bb-attack list` lists them"))
        }
    }
}

fn preview(args: &PreviewArgs) -> Result<(), Failure> {
    let given = Given {
        files: args.config.clone(),
        set: args.set.clone(),
    };
    let ready = registry::find(&args.method)?.resolve(&args.dataset, &given)?;
    let idle = [
        ("--arch", args.arch.is_some()),
        ("--width", args.width.is_some()),
    ];
    if let Some((option, _)) = idle
        .iter()
        .find(|(_, given)| *given && !ready.needs_network())
    {
        return Err(Failure::usage(format!(
            "`{option}` does nothing here, because the trigger of `{}` is made without a network",
            args.method
        ))
        .hint("leave it out"));
    }
    let trains = |set: &&String| set.starts_with("train.") || set.starts_with("eval_every=");
    if let Some(set) = args.set.iter().find(trains)
        && !ready.needs_network()
    {
        return Err(Failure::usage(format!(
            "`--set {set}` does nothing here, because a preview trains nothing but what makes the trigger"
        ))
        .hint("leave it out"));
    }
    let stealth = preview::run(&PreviewRequest {
        method: args.method.clone(),
        dataset: args.dataset.clone(),
        data: args.data.clone(),
        test_split: args.test_split.clone(),
        arch: args.arch.clone().unwrap_or_else(|| DEFAULT_ARCH.to_owned()),
        width: args.width.unwrap_or(DEFAULT_WIDTH),
        given,
        seed: args.seed,
        images: args.images,
        out: args.out.clone(),
    })?;
    let line = json!({ "preview": args.out, "stealth": stealth });
    cli::print(&format!("{line}\n"))
}

/// One line per attack: name, what it does, paper.
fn list() -> String {
    let width = ATTACKS
        .iter()
        .map(|attack| attack.info().id.len())
        .max()
        .unwrap_or(0);
    let line = |attack: &&dyn AnyAttack| {
        let info = attack.info();
        format!("{:width$}  {} ({})\n", info.id, info.summary, info.paper)
    };
    ATTACKS.iter().map(line).collect()
}

fn attack(method: &str, args: &Args) -> Result<(), Failure> {
    let options = &args.run;
    let given = Given {
        files: options.config.clone(),
        set: options.set.clone(),
    };
    let compute = Compute::open(options.host.device)?;
    if options.show_config {
        let settings = harness::show(&request(method, args, given, compute))?;
        return cli::print(&(shown_options(args) + &settings));
    }
    if let Some(text) = compute.choice(options.host.device) {
        Log::new(options.host.quiet).info("device", &text, &Value::Null)?;
    }
    cli::init_threads(options.host.threads)?;
    let cell = run(&request(method, args, given, compute))?;
    let mut line = Map::from_iter([("cell".to_owned(), json!(cell.dir))]);
    if let Value::Object(results) = &cell.manifest.results {
        line.extend(results.clone());
        // The names of hundreds of classes would hide the rest; they are in the manifest.
        line.shift_remove("classes");
    }
    cli::print(&format!("{}\n", Value::Object(line)))
}

fn request(method: &str, args: &Args, given: Given, compute: Compute) -> AttackRequest {
    let options = &args.run;
    AttackRequest {
        method: method.to_owned(),
        dataset: options.dataset().to_owned(),
        data: options.host.data.clone(),
        train_limit: args.train_limit,
        test_limit: args.test_limit,
        test_split: args.test_split.clone(),
        arch: options.arch().to_owned(),
        width: options.width(),
        precision: options.precision,
        compute,
        given,
        seed: options.seed,
        out: options.host.out.clone(),
        quiet: options.host.quiet,
    }
}

/// The lines of `--show-config` for what is no setting.
fn shown_options(args: &Args) -> String {
    let options = &args.run;
    let line = |name: &str, value: Value, given: bool| {
        let option = format!("--{}", name.replace('_', "-"));
        option_line(name, &value, if given { &option } else { "default" })
    };
    let limit = |name: &str, limit: Option<usize>| {
        let value = limit.map_or_else(|| json!("all"), |limit| json!(limit));
        line(name, value, limit.is_some())
    };
    [
        SHOWN_OPTIONS.to_owned(),
        line(
            "dataset",
            json!(options.dataset()),
            options.dataset.is_some(),
        ),
        line("arch", json!(options.arch()), options.arch.is_some()),
        line("width", json!(options.width()), options.width.is_some()),
        limit("train_limit", args.train_limit),
        limit("test_limit", args.test_limit),
        options.shown(),
        "\n".to_owned(),
    ]
    .concat()
}
