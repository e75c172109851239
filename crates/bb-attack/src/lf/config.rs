//! Settings of LF.

use bb_core::settings::{SettingsError, Validate, check};
use bb_nn::train::Recipe;
use serde::{Deserialize, Serialize};

use crate::labels::LabelRule;
use crate::settings;

/// Settings of LF; the defaults are the bench's, but for the pattern.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LfConfig {
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

/// Table `[trigger]` of LF.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TriggerConfig {
    /// Where the pattern comes from.
    pub source: Source,
    /// The pattern, for `source = "file"`.
    pub file: String,
    /// Largest value of the pattern in grey levels, for `source = "rule"`.
    pub peak: u8,
}

/// The setting `trigger.source`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A smooth pattern drawn by rule.
    #[default]
    Rule,
    /// A file of the user's.
    File,
}

impl Default for LfConfig {
    fn default() -> Self {
        Self {
            target: 0,
            ratio: 0.1,
            label: LabelRule::All2One,
            shift: 1,
            eval_every: 1,
            trigger: TriggerConfig {
                source: Source::Rule,
                file: String::new(),
                peak: 51,
            },
            train: Recipe::default(),
        }
    }
}

impl Validate for LfConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        settings::check_ratio(self.ratio)?;
        let TriggerConfig { source, file, peak } = &self.trigger;
        match source {
            Source::Rule => check(
                "trigger.file",
                file,
                "no file, or `trigger.source = \"file\"`",
                file.is_empty(),
            )?,
            Source::File => check(
                "trigger.file",
                file,
                "the path of a pattern, or `trigger.source = \"rule\"`",
                !file.is_empty(),
            )?,
        }
        check("trigger.peak", peak, "a grey level of 1 to 255", *peak >= 1)?;
        settings::check_train(&self.train)
    }
}
