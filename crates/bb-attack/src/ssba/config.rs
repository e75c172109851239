//! Settings of SSBA.

use bb_core::settings::{Idle, SettingsError, Validate, check};
use bb_nn::train::Recipe;
use serde::{Deserialize, Serialize};

use crate::labels::LabelRule;
use crate::settings;

/// Settings of SSBA; the defaults are the bench's.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SsbaConfig {
    /// The attacker's class, for all-to-one.
    pub target: u32,
    /// Share of the training set that is poisoned, above 0 and at most 1.
    pub ratio: f64,
    /// How the attacked label follows from the true one.
    pub label: LabelRule,
    /// Distance between true and attacked class, for all-to-all.
    pub shift: u32,
    /// Measure after every n-th epoch; 0 measures only after the last.
    pub eval_every: usize,
    /// The trigger.
    pub trigger: TriggerConfig,
    /// The training recipe.
    pub train: Recipe,
}

/// Table `[trigger]` of SSBA.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TriggerConfig {
    /// Where the encoded images come from.
    pub source: Source,
    /// Folder with the two arrays, for `source = "file"`.
    pub folder: String,
    /// The encoded training images, for `source = "file"` without a folder.
    pub train_file: String,
    /// The encoded test images, for `source = "file"` without a folder.
    pub test_file: String,
    /// Bits that an image carries.
    pub bits: usize,
    /// Seed of the bits that poisoned images carry.
    pub message_seed: u64,
    /// Channels of the first convolutions of encoder and decoder.
    pub width: usize,
    /// Passes over the training images.
    pub epochs: usize,
    /// Steps; 0 for those of the epochs.
    pub steps: usize,
    /// Images per step; the last one of a pass has those that are left.
    pub batch_size: usize,
    /// Learning rate of Adam.
    pub lr: f64,
    /// Bit accuracy of a batch from which on the image counts.
    pub start_accuracy: f64,
    /// Steps from there to the beginning of the ramp.
    pub delay: usize,
    /// Steps in which the image's weight rises to the full one.
    pub ramp: usize,
    /// Full weight of the image's error beside that of the bits.
    pub image_weight: f64,
}

/// The setting `trigger.source`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// An encoder that is trained first.
    #[default]
    Train,
    /// Arrays of the user's.
    File,
}

impl Default for SsbaConfig {
    fn default() -> Self {
        Self {
            target: 0,
            ratio: 0.1,
            label: LabelRule::All2One,
            shift: 1,
            eval_every: 1,
            trigger: TriggerConfig {
                source: Source::Train,
                folder: String::new(),
                train_file: String::new(),
                test_file: String::new(),
                bits: 100,
                message_seed: 0,
                width: 32,
                epochs: 20,
                steps: 0,
                batch_size: 64,
                lr: 1e-4,
                start_accuracy: 0.9,
                delay: 1000,
                ramp: 3000,
                image_weight: 10.0,
            },
            train: Recipe::default(),
        }
    }
}

impl Validate for SsbaConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        settings::check_ratio(self.ratio)?;
        let t = &self.trigger;
        let files = [
            ("trigger.folder", &t.folder),
            ("trigger.train_file", &t.train_file),
            ("trigger.test_file", &t.test_file),
        ];
        for (key, file) in files {
            let alone = key == "trigger.folder" || t.folder.is_empty();
            let (expected, good) = match t.source {
                Source::Train => ("no file, or `trigger.source = \"file\"`", file.is_empty()),
                Source::File if alone && key != "trigger.folder" => (
                    "the path of an array, or `trigger.folder`",
                    !file.is_empty(),
                ),
                Source::File => ("nothing beside `trigger.folder`", alone || file.is_empty()),
            };
            check(key, file, expected, good)?;
        }
        let sizes = [
            ("trigger.bits", t.bits, 4096),
            ("trigger.width", t.width, 512),
            ("trigger.batch_size", t.batch_size, 4096),
        ];
        for (key, size, most) in sizes {
            let expected = format!("1 to {most}");
            check(key, size, &expected, (1..=most).contains(&size))?;
        }
        let counts = [
            ("trigger.epochs", t.epochs),
            ("trigger.steps", t.steps),
            ("trigger.delay", t.delay),
            ("trigger.ramp", t.ramp),
        ];
        for (key, count) in counts {
            check(key, count, "at most 10000000", count <= 10_000_000)?;
        }
        let numbers = [
            ("trigger.lr", t.lr),
            ("trigger.image_weight", t.image_weight),
        ];
        for (key, number) in numbers {
            let good = number.is_finite() && number >= 0.0;
            check(key, number, "a number of at least 0", good)?;
        }
        check(
            "trigger.start_accuracy",
            t.start_accuracy,
            "a share of 0 to 1",
            (0.0..=1.0).contains(&t.start_accuracy),
        )?;
        settings::check_train(&self.train)
    }

    fn idle(&self) -> Vec<Idle> {
        let mut idle = settings::idle_train(&self.train);
        idle.push(settings::idle_label(self.label));
        if self.trigger.source == Source::File {
            let keys = [
                "trigger.bits",
                "trigger.message_seed",
                "trigger.width",
                "trigger.epochs",
                "trigger.steps",
                "trigger.batch_size",
                "trigger.lr",
                "trigger.start_accuracy",
                "trigger.delay",
                "trigger.ramp",
                "trigger.image_weight",
            ];
            idle.extend(keys.map(|key| (key, "`trigger.source` is `file`")));
        } else if self.trigger.steps > 0 {
            idle.push(("trigger.epochs", "`trigger.steps` is not 0"));
        }
        idle
    }
}
