//! The options that the binaries share.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::Device;
use crate::cell::store;
use crate::precision::Precision;
use crate::settings::{Layers, SettingsError, option_line};

/// Dataset of an attack that names none.
pub const DEFAULT_DATASET: &str = "cifar10";
/// Architecture of an attack that names none.
pub const DEFAULT_ARCH: &str = "preactresnet18";
/// Width of an attack that names none: that of the published models.
pub const DEFAULT_WIDTH: usize = 64;

/// Most channels of the first stage.
pub const MOST_WIDTH: usize = 512;
/// Most images that a limit may ask for: ten times ImageNet, and more than memory holds.
pub const MOST_IMAGES: usize = 10_000_000;
/// The environment variable for `--data`: places belong to a machine, and do not change from run to run.
pub const DATA_ENV: &str = "BB_DATA";

/// Where to compute, read and write. Nothing here changes a result.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Machine")]
pub struct HostArgs {
    /// Folder with the datasets
    #[arg(long, value_name = "DIR", env = DATA_ENV, hide_env_values = true)]
    pub data: Option<PathBuf>,
    /// Folder of results
    #[arg(long = "store", alias = "out", value_name = "DIR", default_value = store::DEFAULT)]
    pub out: PathBuf,
    /// Where to compute: auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Auto)]
    pub device: Device,
    /// Number of threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = threads, allow_negative_numbers = true)]
    pub threads: Option<NonZeroUsize>,
    /// No progress and no log lines, only warnings and errors
    #[arg(short, long)]
    pub quiet: bool,
}

/// What to run: the options of one attack or one defense.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Dataset [default: cifar10 for an attack, that of the model for a defense]
    #[arg(long, value_name = "ID")]
    pub dataset: Option<String>,
    /// Architecture [default: preactresnet18 for an attack, that of the model for a defense]
    #[arg(long, value_name = "ID")]
    pub arch: Option<String>,
    /// Channels of the first stage [default: 64 for an attack, that of the model for a defense]
    #[arg(long, value_name = "N", value_parser = width, allow_negative_numbers = true)]
    pub width: Option<usize>,
    /// How convolutions multiply while training: f32, bf16 (CPUs with AVX512-BF16) or tf32 (GPUs)
    #[arg(long, value_name = "PRECISION", default_value_t = Precision::F32)]
    pub precision: Precision,
    /// Settings file, over the recipe of the dataset; may be repeated
    #[arg(short, long, value_name = "FILE")]
    pub config: Vec<PathBuf>,
    /// One setting, over the files; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = seed, allow_negative_numbers = true)]
    pub seed: u64,
    /// Print every setting with its origin, and stop
    #[arg(long)]
    pub show_config: bool,
    /// Where to compute, read and write.
    #[command(flatten)]
    pub host: HostArgs,
}

/// What `--show-config` prints above the settings.
pub const SHOWN_OPTIONS: &str = "# Options; a settings file holds only what follows them.\n";

impl RunArgs {
    /// The lines of `--show-config` for the options that attacks and defenses have alike, beside the network and the data.
    pub fn shown(&self) -> String {
        let line = |name: &str, value: Value, usual: bool| {
            let origin = if usual {
                "default".to_owned()
            } else {
                format!("--{name}")
            };
            option_line(name, &value, &origin)
        };
        let Self {
            precision, seed, ..
        } = self;
        let device = self.host.device;
        [
            line(
                "precision",
                precision.name().into(),
                *precision == Precision::default(),
            ),
            line("seed", (*seed).into(), *seed == 0),
            line(
                "device",
                device.to_string().into(),
                device == Device::default(),
            ),
        ]
        .concat()
    }

    /// The dataset, for an attack.
    pub fn dataset(&self) -> &str {
        self.dataset.as_deref().unwrap_or(DEFAULT_DATASET)
    }

    /// The architecture, for an attack.
    pub fn arch(&self) -> &str {
        self.arch.as_deref().unwrap_or(DEFAULT_ARCH)
    }

    /// The width, for an attack.
    pub fn width(&self) -> usize {
        self.width.unwrap_or(DEFAULT_WIDTH)
    }

    /// All layers in their order: `defaults`, `recipe` (path in the repository and text), `-c`, `--set`.
    pub fn layers(
        &self,
        defaults: &impl Serialize,
        recipe: Option<(&str, &str)>,
    ) -> Result<Layers, SettingsError> {
        let mut layers = Layers::new(defaults);
        if let Some((path, text)) = recipe {
            layers = layers.toml_text(path, text)?;
        }
        for path in &self.config {
            layers = layers.file(path)?;
        }
        for assignment in &self.set {
            layers = layers.set(assignment)?;
        }
        Ok(layers)
    }
}

/// A seed, for the parser of an option.
pub fn seed(text: &str) -> Result<u64, String> {
    whole(text, 0, u64::MAX)
}

/// Channels of the first stage, for the parser of an option.
pub fn width(text: &str) -> Result<usize, String> {
    whole(text, 1, MOST_WIDTH as u64)
}

/// A number of images, for the parser of an option.
pub fn limit(text: &str) -> Result<usize, String> {
    whole(text, 1, MOST_IMAGES as u64)
}

/// A whole number from `least` to `most`, for the parser of an option.
pub fn whole<T: TryFrom<u64>>(text: &str, least: u64, most: u64) -> Result<T, String> {
    // A number may begin with a plus sign for Rust, and should not here.
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits);
    number
        .filter(|number| (least..=most).contains(number))
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| format!("expected a whole number from {least} to {most}"))
}

/// A number of threads that a machine can have, for the parser of an option.
pub fn threads(text: &str) -> Result<NonZeroUsize, &'static str> {
    // A thousand threads wait for each other thirty times as long as they compute.
    const MOST: usize = 256;
    match text.parse::<NonZeroUsize>() {
        Ok(threads) if threads.get() <= MOST => Ok(threads),
        _ => Err("expected a number from 1 to 256"),
    }
}
