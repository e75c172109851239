//! Settings of LF.

use bb_core::settings::{Idle, SettingsError, Validate, check};
use bb_nn::train::Recipe;
use serde::{Deserialize, Serialize};

use crate::labels::LabelRule;
use crate::settings;

/// Settings of LF; the defaults are the bench's, but for the pattern.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LfConfig {
    /// The attacker's class, for all-to-one; and the class that the search for a pattern aims at.
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
    /// The pattern, for `source = "file"`; with one, `source = "rule"` takes it too.
    pub file: String,
    /// What the numbers of a `.npy` file are.
    pub scale: Scale,
    /// Largest value of the pattern in grey levels, unless it comes from a file.
    pub peak: u8,
    /// The clean network, for `source = "deepfool"`; empty to train one.
    pub model: String,
    /// Epochs of the clean network's training; 0 for those of the recipe.
    pub clean_epochs: usize,
    /// The search, for `source = "deepfool"`.
    pub deepfool: DeepFoolConfig,
}

/// Table `[trigger.deepfool]` of LF.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeepFoolConfig {
    /// Training images that are attacked.
    pub images: usize,
    /// Most passes over them.
    pub passes: usize,
    /// Share of the evaluation images whose class must change.
    pub fooling_rate: f64,
    /// Evaluation images of each class; 0 for the first test image alone.
    pub evaluate_per_class: usize,
    /// Whether the attacked network sees images normalised, as it was trained, and judges see the pattern normalised too.
    pub normalised: bool,
}

impl Default for DeepFoolConfig {
    fn default() -> Self {
        Self {
            images: 100,
            passes: 50,
            fooling_rate: 0.2,
            evaluate_per_class: 10,
            normalised: true,
        }
    }
}

/// The setting `trigger.source`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A smooth pattern drawn by rule, or the file if one is named.
    #[default]
    Rule,
    /// A file of the user's.
    File,
    /// A pattern searched by attacks on a clean network.
    #[serde(rename = "deepfool")]
    DeepFool,
}

/// The setting `trigger.scale`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// Floats of -1 to 1 are fractions, with a warning; anything else is grey levels.
    #[default]
    Auto,
    /// Grey levels of 0 to 255, which need not be whole.
    Levels,
    /// Fractions of 255 grey levels.
    Fractions,
}

impl Scale {
    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Levels => "levels",
            Self::Fractions => "fractions",
        }
    }
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
                scale: Scale::Auto,
                peak: 51,
                model: String::new(),
                clean_epochs: 0,
                deepfool: DeepFoolConfig::default(),
            },
            train: Recipe::default(),
        }
    }
}

impl Validate for LfConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        settings::check_ratio(self.ratio)?;
        let TriggerConfig {
            source,
            file,
            scale,
            peak,
            model,
            clean_epochs,
            deepfool,
        } = &self.trigger;
        match source {
            Source::Rule => {}
            Source::DeepFool => check(
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
        check(
            "trigger.scale",
            scale.name(),
            "`auto` where no `trigger.file` is named",
            *scale == Scale::Auto || !file.is_empty(),
        )?;
        check("trigger.peak", peak, "a grey level of 1 to 255", *peak >= 1)?;
        check(
            "trigger.model",
            model,
            "no network, or `trigger.source = \"deepfool\"`",
            model.is_empty() || *source == Source::DeepFool,
        )?;
        settings::check_clean_epochs(*clean_epochs)?;
        let counts = [
            ("trigger.deepfool.images", deepfool.images),
            ("trigger.deepfool.passes", deepfool.passes),
        ];
        for (key, count) in counts {
            check(key, count, "1 to 1000000", (1..=1_000_000).contains(&count))?;
        }
        check(
            "trigger.deepfool.fooling_rate",
            deepfool.fooling_rate,
            "a share above 0 and at most 1",
            deepfool.fooling_rate > 0.0 && deepfool.fooling_rate <= 1.0,
        )?;
        settings::check_train(&self.train)
    }

    fn idle(&self) -> Vec<Idle> {
        let TriggerConfig {
            source,
            file,
            model,
            ..
        } = &self.trigger;
        let mut idle = settings::idle_train(&self.train);
        if *source == Source::DeepFool {
            // The search aims at `target` whatever the labels are.
            if self.label == LabelRule::All2One {
                idle.push(settings::idle_label(self.label));
            }
            if !model.is_empty() {
                idle.push(("trigger.clean_epochs", "`trigger.model` names a network"));
            }
            return idle;
        }
        idle.push(settings::idle_label(self.label));
        let why = "`trigger.source` is not `deepfool`";
        idle.extend(["trigger.clean_epochs", "trigger.deepfool"].map(|key| (key, why)));
        if !file.is_empty() {
            idle.push(("trigger.peak", "`trigger.file` names a pattern"));
        }
        idle
    }
}
