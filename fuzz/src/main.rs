//! Feeds broken files to everything that reads files of strangers; see `bb-fuzz --help`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bb_core::cli::{self, Failure};
use bb_fuzz::{Budget, TARGETS, Target, run};
use clap::Parser;

/// Feed broken files to the readers
///
/// Every input follows from the target, the seed and its number, so whatever is found can be made again. An input that
/// ends in a panic, takes over a second, or brings the process over its memory is kept and named, and ends the run.
#[derive(Parser, Debug)]
#[command(name = "bb-fuzz", version)]
struct Args {
    /// Reader to feed; all of them, one after the other, without
    #[arg(value_name = "TARGET", value_parser = clap::builder::PossibleValuesParser::new(TARGETS.iter().map(|t| t.name)))]
    target: Option<String>,
    /// Name the readers, and feed none
    #[arg(long, exclusive = true)]
    list: bool,
    /// How long to feed each
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Seed of the inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Number of the first input
    #[arg(long, value_name = "N", default_value_t = 0)]
    from: u64,
    /// Stop after this many inputs
    #[arg(long, value_name = "N")]
    inputs: Option<u64>,
    /// Folder whose files are changed as well as the built-in ones
    #[arg(long, value_name = "DIR")]
    corpus: Option<PathBuf>,
    /// Write seeds and inputs into this folder, and feed none
    #[arg(long, value_name = "DIR", requires = "target", requires = "inputs")]
    write: Option<PathBuf>,
    /// Folder for inputs that were found
    #[arg(long, value_name = "DIR", default_value = "fuzz/found")]
    found: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    cli::main(|| feed(&args))
}

fn feed(args: &Args) -> Result<(), Failure> {
    if args.list {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        return cli::print(&format!("{}\n", names.join("\n")));
    }
    let mut more = Vec::new();
    if let Some(folder) = &args.corpus {
        for entry in fs_err::read_dir(folder)? {
            let path = entry?.path();
            if path.is_file() {
                more.push(fs_err::read(path)?);
            }
        }
        // The order of a folder is the system's.
        more.sort();
    }
    let budget = Budget {
        time: Duration::from_secs(args.seconds),
        inputs: args.inputs.unwrap_or(u64::MAX),
    };
    let wanted = |name: &str| args.target.as_deref().is_none_or(|target| target == name);
    for target in TARGETS.iter().filter(|target| wanted(target.name)) {
        if let Some(folder) = &args.write {
            return write(target, &more, args, folder);
        }
        let outcome = run(target, &more, args.seed, args.from, budget)?;
        cli::print(&format!("{}: {outcome}\n", target.name))?;
        if let Some(finding) = &outcome.finding {
            fs_err::create_dir_all(&args.found)?;
            let name = format!("{}-{}-{}", target.name, args.seed, finding.number);
            let path = args.found.join(name);
            bb_core::artifact::atomic::write(&path, &finding.input)?;
            return Err(Failure::check(format!(
                "{}: {} by input {}, kept as `{}`",
                target.name,
                finding.what,
                finding.number,
                path.display()
            )));
        }
    }
    Ok(())
}

/// A file for each seed and each input, where libFuzzer finds them.
fn write(target: &Target, more: &[Vec<u8>], args: &Args, folder: &Path) -> Result<(), Failure> {
    let mut seeds = (target.seeds)();
    seeds.extend_from_slice(more);
    fs_err::create_dir_all(folder)?;
    for (i, seed) in seeds.iter().enumerate() {
        fs_err::write(folder.join(format!("seed-{i}")), seed)?;
    }
    for number in (args.from..).take(args.inputs.unwrap_or(0) as usize) {
        let input = bb_fuzz::input(target, &seeds, args.seed, number);
        fs_err::write(folder.join(format!("{}-{number}", args.seed)), input)?;
    }
    Ok(())
}
