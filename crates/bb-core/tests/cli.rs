//! The command line that the binaries share: options, exit codes, what a failure looks like, threads.

use std::error::Error;
use std::fmt;
use std::io;
use std::num::NonZeroUsize;

use bb_core::cli::{
    self, Backend, CliError, Coded, Device, Failure, HostArgs, RunArgs, exit, finish, init_threads,
};
use bb_core::precision::Precision;
use bb_core::settings::render;
use clap::{CommandFactory as _, Parser};

/// Tests the options.
#[derive(Debug, Parser)]
#[command(name = "bb-test", term_width = 100)]
struct Cli {
    #[command(flatten)]
    run: RunArgs,
}

fn parse(words: &str) -> Result<RunArgs, String> {
    let words = std::iter::once("bb-test").chain(words.split_whitespace());
    Cli::try_parse_from(words)
        .map(|cli| cli.run)
        .map_err(|error| {
            assert_eq!(error.exit_code(), i32::from(exit::USAGE));
            error
                .to_string()
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned()
        })
}

#[derive(Debug, thiserror::Error)]
enum Outer {
    #[error("cannot repair `m`")]
    Plain { source: Middle },
    #[error("cannot repair `m`: {source}")]
    Repeating { source: Middle },
}

#[derive(Debug, thiserror::Error)]
#[error("layer `conv1` is wrong")]
struct Middle(#[source] io::Error);

impl Coded for Outer {
    fn exit_code(&self) -> u8 {
        exit::NUMERICAL
    }

    fn hint(&self) -> Option<String> {
        Some("try a lower `stage1.lr`".to_owned())
    }
}

fn middle(kind: io::ErrorKind) -> Middle {
    Middle(io::Error::new(kind, "the end"))
}

#[test]
fn the_help_lists_the_options() {
    let expected = "\
Tests the options

Usage: bb-test [OPTIONS]

Options:
      --dataset <ID>           Dataset [default: cifar10 for an attack, that of the model for a
                               defense]
      --arch <ID>              Architecture [default: preactresnet18 for an attack, that of the
                               model for a defense]
      --width <N>              Channels of the first stage [default: 64 for an attack, that of the
                               model for a defense]
      --precision <PRECISION>  How convolutions multiply while training: f32, bf16 (CPUs with
                               AVX512-BF16) or tf32 (GPUs) [default: f32]
  -c, --config <FILE>          Settings file, over the recipe of the dataset; may be repeated
      --set <KEY=VALUE>        One setting, over the files; may be repeated
      --seed <N>               Seed of everything random [default: 0]
      --show-config            Print every setting with its origin, and stop
  -h, --help                   Print help

Machine:
      --data <DIR>       Folder with the datasets [env: BB_DATA]
      --store <DIR>      Folder of results [default: runs]
      --device <DEVICE>  Where to compute: auto, cpu or cuda:N [default: auto]
      --threads <N>      Number of threads [default: all cores]
  -q, --quiet            No progress and no log lines, only warnings and errors
";
    assert_eq!(Cli::command().render_help().to_string(), expected);
}

#[test]
fn the_data_folder_may_come_from_the_environment() {
    let command = Cli::command();
    let data = command.get_arguments().find(|arg| arg.get_id() == "data");
    let data = data.expect("there is `--data`");
    assert_eq!(
        data.get_env().and_then(|name| name.to_str()),
        Some("BB_DATA")
    );
    // Where it is would otherwise stand in the help, and a recorded help differ between machines.
    assert!(data.is_hide_env_values_set());
}

#[test]
fn options_have_their_defaults() {
    let args = parse("").unwrap();
    assert_eq!(
        (args.dataset(), args.arch(), args.width()),
        ("cifar10", "preactresnet18", 64)
    );
    assert_eq!(
        (args.dataset.as_deref(), args.arch.as_deref(), args.width),
        (None, None, None)
    );
    assert_eq!(
        (args.precision, args.seed, args.show_config),
        (Precision::F32, 0, false)
    );
    assert!(args.config.is_empty() && args.set.is_empty());
    let HostArgs {
        data,
        out,
        device,
        threads,
        quiet,
    } = args.host;
    assert_eq!(
        (data, out.to_str(), device, threads, quiet),
        (None, Some("runs"), Device::Auto, None, false)
    );
}

#[test]
fn options_are_read() {
    let args = parse(
        "--dataset gtsrb --arch vgg --width 16 --precision bf16 -c a.toml --config b.toml --set x=1 --set y=-2 --seed 3 \
         --show-config --data d --out o --device cuda:1 --threads 2 -q",
    )
    .unwrap();
    assert_eq!(
        (args.dataset(), args.arch(), args.width()),
        ("gtsrb", "vgg", 16)
    );
    let config: Vec<_> = args
        .config
        .iter()
        .filter_map(|path| path.to_str())
        .collect();
    assert_eq!(
        (config, args.set),
        (
            vec!["a.toml", "b.toml"],
            vec!["x=1".to_owned(), "y=-2".to_owned()]
        )
    );
    assert_eq!(
        (args.precision, args.seed, args.show_config),
        (Precision::Bf16, 3, true)
    );
    assert_eq!(
        (args.host.device, args.host.threads, args.host.quiet),
        (Device::Cuda(1), NonZeroUsize::new(2), true)
    );
}

#[test]
fn wrong_options_are_told_in_one_line() {
    let cases = [
        (
            "--device gpu",
            "error: invalid value 'gpu' for '--device <DEVICE>': expected `auto`, `cpu` or `cuda:N`; did you mean `cuda:0`?",
        ),
        (
            "--device cuda:",
            "error: invalid value 'cuda:' for '--device <DEVICE>': expected `auto`, `cpu` or `cuda:N`; did you mean `cuda:0`?",
        ),
        (
            "--device cuda:+1",
            "error: invalid value 'cuda:+1' for '--device <DEVICE>': expected `auto`, `cpu` or `cuda:N`; did you mean `cuda:0`?",
        ),
        (
            "--threads 0",
            "error: invalid value '0' for '--threads <N>': expected a number from 1 to 256",
        ),
        (
            "--threads 1025",
            "error: invalid value '1025' for '--threads <N>': expected a number from 1 to 256",
        ),
        (
            "--precision fp16",
            "error: invalid value 'fp16' for '--precision <PRECISION>': unknown precision `fp16`, expected `f32`, `bf16` or `tf32`",
        ),
        (
            "--device cpus",
            "error: invalid value 'cpus' for '--device <DEVICE>': expected `auto`, `cpu` or `cuda:N`; did you mean `cpu`?",
        ),
        (
            "--seed -1",
            "error: invalid value '-1' for '--seed <N>': expected a whole number from 0 to 18446744073709551615",
        ),
        (
            "--seed 18446744073709551616",
            "error: invalid value '18446744073709551616' for '--seed <N>': expected a whole number from 0 to 18446744073709551615",
        ),
        (
            "--seed 1.5",
            "error: invalid value '1.5' for '--seed <N>': expected a whole number from 0 to 18446744073709551615",
        ),
        (
            "--width -4",
            "error: invalid value '-4' for '--width <N>': expected a whole number from 1 to 512",
        ),
        (
            "--width 0",
            "error: invalid value '0' for '--width <N>': expected a whole number from 1 to 512",
        ),
        (
            "--width 513",
            "error: invalid value '513' for '--width <N>': expected a whole number from 1 to 512",
        ),
        (
            "--threads -1",
            "error: invalid value '-1' for '--threads <N>': expected a number from 1 to 256",
        ),
        ("--epochs 3", "error: unexpected argument '--epochs' found"),
    ];
    for (words, expected) in cases {
        assert_eq!(
            parse(words).expect_err("an error is due"),
            expected,
            "{words}"
        );
    }
}

#[test]
fn layers_come_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (
        folder.path().join("one.toml"),
        folder.path().join("two.toml"),
    );
    fs_err::write(&one, "b = 3\nc = 3\nd = 3\n").unwrap();
    fs_err::write(&two, "c = 4\nd = 4\n").unwrap();
    let args = parse(&format!(
        "--set d=5 -c {} -c {}",
        one.display(),
        two.display()
    ))
    .expect("these options are right");
    let defaults = serde_json::json!({ "z": 1, "a": 1, "b": 1, "c": 1, "d": 1 });
    let layers = args
        .layers(&defaults, Some(("configs/r.toml", "a = 2\nb = 2\n")))
        .unwrap();
    let resolved = layers.resolve::<serde_json::Value>().unwrap();
    let expected = format!(
        "z = 1  # defaults\na = 2  # recipe configs/r.toml\nb = 3  # {}:1\nc = 4  # {}:1\nd = 5  # --set\n",
        one.display(),
        two.display()
    );
    assert_eq!(render(&resolved), expected);
}

#[test]
fn a_device_is_one_that_is_there() {
    let refused = |device: Device, devices| match device.resolve(devices) {
        Ok(backend) => backend.to_string(),
        Err(error) => Failure::from(error).report(false),
    };
    let no_cuda = "error: device `cuda:0` is not available: this build runs on the CPU only\nhint: run with `--device cpu`\n";
    let cases = [
        (Device::Auto, None, "cpu"),
        (Device::Auto, Some(0), "cpu"),
        (Device::Auto, Some(2), "cuda:0"),
        (Device::Cpu, Some(2), "cpu"),
        (Device::Cuda(1), Some(2), "cuda:1"),
        (Device::Cuda(0), None, no_cuda),
        (
            Device::Cuda(2),
            Some(2),
            "error: device `cuda:2` is not available: this machine has 2 CUDA devices, counted from 0\n",
        ),
    ];
    for (device, devices, expected) in cases {
        assert_eq!(
            refused(device, devices),
            expected,
            "{device} of {devices:?}"
        );
    }
    assert_eq!(Device::Cpu.resolve(None).unwrap(), Backend::Cpu);
    assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
    for text in ["auto", "cpu", "cuda:0", "cuda:17"] {
        assert_eq!(
            text.parse::<Device>()
                .map(|device| device.to_string())
                .as_deref(),
            Ok(text)
        );
    }
}

#[test]
fn a_failure_is_told_once_with_its_causes_and_its_hint() {
    let report = |failure: Failure| failure.report(false);
    let expected = "error: cannot repair `m`\ncaused by: layer `conv1` is wrong\ncaused by: the end\n\
                    hint: try a lower `stage1.lr`\n";
    let source = || middle(io::ErrorKind::Other);
    assert_eq!(report(Outer::Plain { source: source() }.into()), expected);
    let expected = "error: cannot repair `m`: layer `conv1` is wrong\ncaused by: the end\n\
                    hint: try a lower `stage1.lr`\n";
    assert_eq!(
        report(Outer::Repeating { source: source() }.into()),
        expected
    );

    let failure = Failure::from(Outer::Plain { source: source() })
        .context("cell `x` is not done")
        .hint("look");
    assert_eq!(failure.exit_code(), exit::NUMERICAL);
    assert_eq!(failure.to_string(), "cell `x` is not done");
    let expected = "error: cell `x` is not done\ncaused by: cannot repair `m`\ncaused by: layer `conv1` is wrong\n\
                    caused by: the end\nhint: look\n";
    assert_eq!(report(failure), expected);

    assert_eq!(
        report(Failure::check("3 of 5 cells differ")),
        "error: 3 of 5 cells differ\n"
    );
    assert_eq!(
        Failure::usage("no model")
            .hint("give `--model`")
            .report(true),
        "\x1b[1;31merror:\x1b[0m no model\n\x1b[1;36mhint:\x1b[0m give `--model`\n"
    );
}

/// An error with any exit code.
#[derive(Debug)]
struct Code(u8);

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "code {}", self.0)
    }
}

impl Error for Code {}

impl Coded for Code {
    fn exit_code(&self) -> u8 {
        self.0
    }
}

#[test]
fn results_end_with_their_exit_code() {
    let finished = |result: Result<(), Failure>| {
        let mut said = Vec::new();
        let code = finish(result, &mut said, false);
        (code, String::from_utf8(said).expect("messages are text"))
    };
    assert_eq!(finished(Ok(())), (exit::DONE, String::new()));
    for code in [1, 2, 3, 4, 75, 101, 130, 143] {
        assert_eq!(
            finished(Err(Code(code).into())),
            (code, format!("error: code {code}\n"))
        );
    }
    assert_eq!(finished(Err(Failure::check("no"))).0, 1);
    assert_eq!(finished(Err(Failure::usage("no"))).0, 2);
    assert_eq!(finished(Err(Failure::new(exit::BUG, "no"))).0, 101);

    let io = |kind: io::ErrorKind| finished(Err(io::Error::new(kind, "x").into())).0;
    assert_eq!(io(io::ErrorKind::NotFound), exit::INPUT);
    assert_eq!(io(io::ErrorKind::StorageFull), exit::TRY_AGAIN);
    assert_eq!(io(io::ErrorKind::ReadOnlyFilesystem), exit::TRY_AGAIN);
    // Too many open files have a number only: 24 of this process, 23 of all; 2 is a file that is not there.
    for (number, code) in [
        (24, exit::TRY_AGAIN),
        (23, exit::TRY_AGAIN),
        (2, exit::INPUT),
    ] {
        let error = io::Error::from_raw_os_error(number);
        assert_eq!(error.exit_code(), code);
        // Below an error that names the file.
        let named = io::Error::new(error.kind(), Middle(error));
        assert_eq!(named.exit_code(), code, "{number}");
    }
    // Nothing that a terminal obeys reaches it from a name.
    let said = finished(Err(Failure::check("`a\u{1b}[2J\u{202e}b\r\n\tc`"))).1;
    assert_eq!(said, "error: `a\\u{1b}[2J\\u{202e}b\\u{d}\n\tc`\n");
    let threads = CliError::Signals {
        source: io::Error::other("x"),
    };
    assert_eq!(finished(Err(threads.into())).0, exit::TRY_AGAIN);

    // The reader went away: silence, wherever in the chain that is said.
    let broken = || middle(io::ErrorKind::BrokenPipe);
    let quiet = [
        Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)),
        Failure::from(Outer::Plain { source: broken() }),
        Failure::new(exit::BUG, broken()).context("writing the table"),
    ];
    for failure in quiet {
        assert_eq!(finished(Err(failure)), (exit::DONE, String::new()));
    }
}

#[test]
fn threads_are_started_once() {
    let two = NonZeroUsize::new(2);
    assert_eq!(init_threads(two).unwrap(), 2);
    assert_eq!(rayon::current_num_threads(), 2);
    assert_eq!(init_threads(two).unwrap(), 2);
    let error = init_threads(NonZeroUsize::new(3)).expect_err("there are two already");
    let expected = "error: cannot start 3 threads\n\
                    caused by: The global thread pool has already been initialized.\n";
    assert_eq!(Failure::from(error).report(false), expected);
}

#[test]
fn a_program_that_is_not_interrupted_goes_on() {
    assert!(!cli::interrupted());
    assert_eq!(cli::check_interrupt(), Ok(()));
}
