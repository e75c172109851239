//! Runs a program, with limits and with a broken system, and says how it ended and what it cost.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

/// The signal of a process that was killed, by itself or because it took too long.
pub(crate) const KILLED: i32 = 9;

/// What a program is called with, in a folder that is its own.
pub(crate) struct Call<'a> {
    /// `bb-attack`, `bb-defense` or `bb-eval`.
    pub(crate) program: &'a str,
    pub(crate) args: &'a [String],
    /// Where it runs.
    pub(crate) folder: &'a Path,
    /// What the shim is told; without any it is not there.
    pub(crate) shim: &'a [(&'a str, String)],
    /// Most addresses that it gets, in MiB; 0 for as many as it wants.
    pub(crate) mib: u64,
    /// When it is killed, in seconds of the clock.
    pub(crate) seconds: u32,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Exit(i32),
    Signal(i32),
}

/// What became of a call.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) end: End,
    pub(crate) stderr: String,
    /// Time of the processor.
    pub(crate) time: Duration,
    /// Most memory at a time, in KiB.
    pub(crate) peak_kib: u64,
}

impl Done {
    /// The last line that was said, for a finding.
    pub(crate) fn last_words(&self) -> String {
        let mut lines = self.stderr.lines();
        let line = lines.find(|line| line.starts_with("error:") || line.contains(" panicked at "));
        let line = line.or_else(|| self.stderr.lines().last());
        line.unwrap_or("nothing was said")
            .chars()
            .take(200)
            .collect()
    }
}

impl Call<'_> {
    /// Runs the program to its end.
    pub(crate) fn run(&self) -> Done {
        let report = tempfile::NamedTempFile::new().expect("a temporary file");
        let mut command = Command::new(tools().join("measure"));
        command
            .arg(report.path())
            .args([self.seconds.to_string(), self.mib.to_string()])
            .arg(program(self.program))
            .args(self.args)
            .current_dir(self.folder)
            .env("NO_COLOR", "1")
            .env_remove("RUST_BACKTRACE")
            .env_remove("BB_DATA")
            .envs(self.shim.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        if !self.shim.is_empty() {
            command.env("BB_PRELOAD", tools().join("shim.so"));
        }
        let output = command.output().expect("the measuring program starts");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "measure: {stderr}");
        let text = fs_err::read_to_string(report.path()).expect("a report");
        let mut words = text.split_whitespace();
        let kind = words.next();
        let mut number = || -> u64 {
            let word = words.next().expect("a number of the report");
            word.parse().expect("a number")
        };
        let code = i32::try_from(number()).expect("a small number");
        Done {
            end: if kind == Some("exit") {
                End::Exit(code)
            } else {
                End::Signal(code)
            },
            stderr,
            time: Duration::from_micros(number()),
            peak_kib: number(),
        }
    }
}

/// A program of the workspace as it was last built, which must be after its sources were last changed.
fn program(name: &str) -> PathBuf {
    static CHECKED: OnceLock<()> = OnceLock::new();
    let place = |name: &str| Path::new(env!("CARGO_BIN_EXE_bb-eval")).with_file_name(name);
    CHECKED.get_or_init(|| {
        let crates = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        // Cargo builds those of the other crates for their own tests only.
        for name in ["bb-attack", "bb-defense"] {
            let how = format!("`{name}` is not built of this source: `cargo build --bins` first");
            let built = changed(&place(name)).expect(&how);
            for part in [name, "bb-core", "bb-nn"] {
                let newest = newest(&crates.join(part).join("src"));
                assert!(newest <= built, "{how}: {part} has changed");
            }
        }
    });
    place(name)
}

/// When a file or folder was last changed.
fn changed(path: &Path) -> std::io::Result<SystemTime> {
    fs_err::metadata(path)?.modified()
}

/// When the file that was changed last, of a folder and those in it, was.
fn newest(folder: &Path) -> SystemTime {
    let entries = fs_err::read_dir(folder).expect("the sources of a crate");
    entries
        .map(|entry| entry.expect("an entry of the sources").path())
        .map(|path| {
            if path.is_dir() {
                newest(&path)
            } else {
                changed(&path).expect("a source file")
            }
        })
        .max()
        .expect("a folder of sources is not empty")
}

/// The folder of what is written in C, compiled once for a process.
fn tools() -> &'static Path {
    static TOOLS: OnceLock<PathBuf> = OnceLock::new();
    TOOLS.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        // Another process may be doing the same.
        let own = tempfile::tempdir_in(folder).expect("a folder of the build");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
        for (name, made, options) in [
            ("measure.c", "measure", &[][..]),
            (
                "shim.c",
                "shim.so",
                &["-shared", "-fPIC", "-pthread", "-ldl"],
            ),
        ] {
            let built = Command::new("cc")
                .args(["-O1", "-Wall", "-Wextra", "-Werror", "-o"])
                .arg(own.path().join(made))
                .arg(source.join(name))
                .args(options)
                .status()
                .expect("a C compiler that is called `cc`");
            assert!(built.success(), "{name} does not compile");
            fs_err::rename(own.path().join(made), folder.join(made))
                .expect("a folder of the build");
        }
        folder.to_owned()
    })
}
