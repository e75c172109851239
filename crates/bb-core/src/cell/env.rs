//! What differs from run to run: the machine, the program, the time. It is kept in `env.json`, apart from the results,
//! which are compared.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Cell, CellError, ENV, Holder, Work};
use crate::events::{clear_peak, kernel, processor, rfc3339, started, usage};
use crate::files::{self, Links};
use crate::json;

/// The commit that the program was built of, `-changed` behind it where files had been changed since; nothing for a
/// checked build, or one outside a checkout.
pub const COMMIT: Option<&str> = option_env!("BB_COMMIT");

/// Most bytes of `env.json` that are read: it is not verified, and anybody may have written it.
const LONGEST: u64 = 64 << 10;
/// Most values of it.
const MOST_VALUES: usize = 1000;
/// Most characters of a command that are kept: thousands of files may be named in one.
const LONGEST_COMMAND: usize = 10_000;

/// The version of the program, with its commit where that is known: what `--version` prints.
pub const VERSION: &str = env!("BB_VERSION");

/// What `env.json` says. What is not known is empty or left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Env {
    /// The processor's name.
    pub cpu: String,
    /// The instruction sets that decide which kernels run, and with them the last bits of a result.
    pub cpu_features: Vec<String>,
    /// Processors that the program may use.
    pub cores: usize,
    /// Threads that it used.
    pub threads: usize,
    /// The operating system.
    pub os: String,
    /// The kind of processor.
    pub arch: String,
    /// The version of the system's kernel.
    pub kernel: String,
    /// The name of the machine.
    pub host: String,
    /// What `BB_RUSTC_VERSION` said when the program was built, otherwise the oldest compiler that could have built it.
    pub rustc: String,
    /// `release`, or `checked` with debug assertions.
    pub build: String,
    /// The version of the program.
    pub version: String,
    /// See [`COMMIT`].
    pub commit: Option<String>,
    /// The parts of the program that not every build has, such as `cuda`.
    pub features: Vec<String>,
    /// The command line.
    pub command: String,
    /// When the program started, as RFC 3339.
    pub started: String,
    /// Where networks were trained and measured.
    pub device: String,
    /// Seconds of the run that completed the cell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Seconds of the processor in them, of all threads together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processor_seconds: Option<f64>,
    /// Most main memory that the program had meanwhile, in KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_kib: Option<u64>,
    /// Folder with the datasets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// Of a defense, the folder of the attack's cell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attack_cell: Option<PathBuf>,
    /// Of an imported model, its file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub imported_from: Option<PathBuf>,
}

impl Env {
    /// This machine and program. Ask after the threads were started.
    pub fn here() -> Self {
        let words: Vec<_> = std::env::args_os().collect();
        let words = words.iter().map(|word| word.to_string_lossy());
        let command = words.collect::<Vec<_>>().join(" ");
        Self {
            cpu: processor().unwrap_or_else(|| "unknown".to_owned()),
            cpu_features: cpu_features(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads: rayon::current_num_threads(),
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            kernel: kernel(),
            host: Holder::here().host.unwrap_or_default(),
            rustc: option_env!("BB_RUSTC_VERSION")
                .unwrap_or(concat!("at least ", env!("CARGO_PKG_RUST_VERSION")))
                .to_owned(),
            build: if cfg!(debug_assertions) {
                "checked"
            } else {
                "release"
            }
            .to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: COMMIT.map(str::to_owned),
            features: Vec::new(),
            command: command.chars().take(LONGEST_COMMAND).collect(),
            started: rfc3339(started()),
            ..Self::default()
        }
    }

    /// The same with what was spent since `clock` was started.
    #[must_use]
    pub fn after(self, clock: Clock) -> Self {
        let now = usage();
        let spent = now.zip(clock.processor);
        Self {
            seconds: Some(clock.began.elapsed().as_secs_f64()),
            processor_seconds: spent
                .map(|(now, before)| now.processor.saturating_sub(before).as_secs_f64()),
            peak_kib: now.map(|now| now.peak_kib),
            ..self
        }
    }

    /// Writes it into a cell that is being made.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, work: &Work) -> Result<(), CellError> {
        let mut text = serde_json::to_string_pretty(self).expect("facts are plain data");
        text.push('\n');
        work.write(ENV, text.as_bytes())
    }

    /// What a cell says, if it can be read.
    pub fn read(cell: &Cell) -> Option<Self> {
        let bytes = files::read(cell.file(ENV), Links::Refuse, LONGEST).ok()?;
        json::from_slice(&bytes, MOST_VALUES).ok()
    }
}

/// Measures what a run spends.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    began: Instant,
    processor: Option<Duration>,
}

impl Clock {
    /// Starts it. The peak of memory counts from here on, where the system can do that.
    pub fn start() -> Self {
        clear_peak();
        Self {
            began: Instant::now(),
            processor: usage().map(|usage| usage.processor),
        }
    }

    /// The time since it was started.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}

/// An absolute path for the record, or the path as it is where the current folder is gone.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn cpu_features() -> Vec<String> {
    #[cfg(target_arch = "x86_64")]
    let known = [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let known: [(&'static str, bool); 0] = [];
    let there = known.into_iter().filter(|(_, there)| *there);
    there.map(|(name, _)| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known() {
        let env = Env::here();
        assert!(env.cores >= 1);
        assert_eq!(env.threads, rayon::current_num_threads());
        assert_eq!(env.version, env!("CARGO_PKG_VERSION"));
        assert!(VERSION.starts_with(&env.version));
        assert!(!env.host.is_empty() && !env.command.is_empty(), "{env:?}");
        assert_eq!(env.started, Env::here().started);
        assert_eq!(env.seconds, None);
    }

    #[test]
    fn what_was_spent_is_what_came_after_the_start() {
        let clock = Clock::start();
        // Long enough for the steps of 10 ms in which Linux counts.
        while clock.elapsed() < Duration::from_millis(60) {
            std::hint::black_box(vec![1u8; 1 << 16]);
        }
        let env = Env::here().after(clock);
        assert!(env.seconds >= Some(0.06), "{env:?}");
        if cfg!(target_os = "linux") {
            assert!(env.peak_kib > Some(100), "{env:?}");
            assert!(env.processor_seconds > Some(0.0), "{env:?}");
        }
    }
}
