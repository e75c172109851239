//! `bb-eval analyze`.

use std::path::PathBuf;

use bb_core::cli::{self, Failure};
use bb_defense::method::Given;
use clap::{Args, Subcommand};

use super::subject::Lesson;
use super::{Request, activeness, nwc, run, tac, unlearning};
use crate::cli::{MachineArgs, StoreArgs};

/// What can be analysed.
#[derive(Subcommand, Debug)]
pub(crate) enum AnalyzeCommand {
    /// How far clean, random and poison unlearning move each neuron, and how the three correlate
    Nwc {
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Gradient norms of the last layer's neurons beside those of a model without a backdoor
    Activeness {
        #[command(flatten)]
        common: CommonArgs,
        /// Folder or manifest of a model of the same network and data that `bb-attack clean` trained
        #[arg(long, value_name = "CELL")]
        clean: PathBuf,
    },
    /// Accuracy and attack success after each epoch of unlearning
    Unlearning {
        #[command(flatten)]
        common: CommonArgs,
        /// What is unlearned, each from the model as it is
        #[arg(long, value_enum, value_delimiter = ',', default_values = ["clean", "poison"])]
        on: Vec<Lesson>,
    },
    /// What the trigger changes in each channel, and which methods rank these channels first
    Tac {
        #[command(flatten)]
        common: CommonArgs,
        /// Folder or manifest of a repair of this model that learned masks (ANP, RNP), to be compared as well; may be
        /// repeated
        #[arg(long, value_name = "CELL")]
        masks: Vec<PathBuf>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct CommonArgs {
    /// An attack's result: its folder, or the first digits of its id
    #[arg(value_name = "CELL")]
    cell: PathBuf,
    #[command(flatten)]
    store: StoreArgs,
    /// Folder to be made for the tables, the figure and `summary.json`
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Folder with the datasets
    #[arg(long, value_name = "DIR", env = cli::DATA_ENV, hide_env_values = true)]
    data: Option<PathBuf>,
    /// Settings of TSBD, over the recipe of the dataset; may be repeated
    #[arg(short, long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// One setting of TSBD, over the files; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Seed of augmentation and noise
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = cli::seed)]
    #[arg(allow_negative_numbers = true)]
    seed: u64,
    #[command(flatten)]
    machine: MachineArgs,
    /// No log lines, only warnings and errors
    #[arg(short, long)]
    quiet: bool,
}

impl CommonArgs {
    /// Also returns the folder of results, to find other cells in.
    fn start(self) -> Result<(Request, StoreArgs), Failure> {
        // What is there already is said before anything is computed.
        super::output::check(&self.out)?;
        let compute = self.machine.start(self.quiet)?;
        let cell = self.store.find(&self.cell)?;
        let request = Request {
            cell,
            data: self.data,
            given: Given {
                files: self.config,
                set: self.set,
            },
            seed: self.seed,
            out: self.out,
            compute,
            quiet: self.quiet,
        };
        Ok((request, self.store))
    }
}

/// Runs an analysis and says on standard output where the results are and what was found.
pub(crate) fn execute(command: AnalyzeCommand) -> Result<(), Failure> {
    let line = match command {
        AnalyzeCommand::Nwc { common } => run(&common.start()?.0, nwc::run),
        AnalyzeCommand::Activeness { common, clean } => {
            let (request, store) = common.start()?;
            let clean = store.find(&clean)?;
            let data = request.data.clone();
            run(&request, |study| {
                activeness::run(study, &clean, data.as_deref())
            })
        }
        AnalyzeCommand::Unlearning { common, on } => {
            run(&common.start()?.0, |study| unlearning::run(study, &on))
        }
        AnalyzeCommand::Tac { common, masks } => {
            let (request, store) = common.start()?;
            let masks = masks.iter().map(|mask| store.find(mask));
            let masks = masks.collect::<Result<Vec<_>, _>>()?;
            run(&request, |study| tac::run(study, &masks))
        }
    }?;
    cli::print(&line)
}
