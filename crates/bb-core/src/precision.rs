//! In which numbers a network is trained.

use serde::{Deserialize, Serialize};

use crate::settings::did_you_mean;

/// How convolutions multiply while a network is trained.
///
/// Sums, weights, optimiser and everything else are `f32` in either case, and measuring always is. Activations are too,
/// but for `bf16` on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Products of `f32`: the reference.
    #[default]
    F32,
    /// Products of `bf16` (8 significant bits), summed in `f32`; on processors with AVX512-BF16 and on GPUs, which store
    /// activations in `bf16` as well.
    Bf16,
    /// Products of TF32 (11 significant bits), summed in `f32`; on NVIDIA GPUs from Ampere on.
    Tf32,
}

impl Precision {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Tf32];

    /// The name used in options, settings and results.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Tf32 => "tf32",
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no precision's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown precision `{}`, expected `f32`, `bf16` or `tf32`{}", .0, suggestion(.0))]
pub struct ParsePrecisionError(String);

fn suggestion(text: &str) -> String {
    let known = Precision::ALL.map(Precision::name);
    did_you_mean(text, known).map_or_else(String::new, |hint| format!("; {hint}"))
}

impl std::str::FromStr for Precision {
    type Err = ParsePrecisionError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|p| p.name() == s)
            .ok_or_else(|| ParsePrecisionError(s.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for precision in Precision::ALL {
            assert_eq!(precision.to_string().parse(), Ok(precision));
            assert_eq!(serde_json::json!(precision), precision.name());
        }
        let error = "fp16".parse::<Precision>().expect_err("an unknown name");
        assert_eq!(
            error.to_string(),
            "unknown precision `fp16`, expected `f32`, `bf16` or `tf32`"
        );
        let error = "fp32".parse::<Precision>().expect_err("an unknown name");
        assert!(
            error.to_string().ends_with("did you mean `f32`?"),
            "{error}"
        );
    }
}
