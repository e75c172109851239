//! What the manifest of a defense's cell says under `results`.

use bb_core::metrics::{Scores, der};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data::Granted;

/// The results of a defense.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Scores of the suspect model.
    pub before: Scores,
    /// Scores of the repaired model, `model.safetensors`.
    pub after: Scores,
    /// Defense effectiveness rating of the repaired model, 0 to 1.
    pub der: Option<f64>,
    /// Name of the repaired model among the candidates.
    pub chosen: String,
    /// Every model that the method made, in its order.
    pub candidates: Vec<Scored>,
    /// The candidate with the best rating, `oracle.safetensors`, if there was more than one. It was found with the test
    /// set, so it says what the method could reach and not what a defender can have.
    pub oracle: Option<Scored>,
    /// The clean images that the method was given; nothing for a data-free one.
    pub clean: Option<Granted>,
    /// What the method itself says.
    pub notes: Value,
}

/// A model that a method made, measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// Its name.
    pub name: String,
    /// Its scores.
    pub scores: Scores,
    /// Its defense effectiveness rating, 0 to 1.
    pub der: Option<f64>,
    /// What the method itself says of it.
    pub notes: Value,
}

impl Results {
    /// Rates measured candidates, each with its notes, against the suspect model.
    ///
    /// # Panics
    /// If `chosen` is not the place of a candidate.
    pub(crate) fn new(
        before: Scores,
        measured: Vec<(String, Scores, Value)>,
        chosen: usize,
        clean: Option<Granted>,
        notes: Value,
    ) -> Self {
        let candidates: Vec<Scored> = measured
            .into_iter()
            .map(|(name, scores, notes)| Scored {
                name,
                scores,
                der: der(&before, &scores),
                notes,
            })
            .collect();
        let oracle = (candidates.len() > 1).then(|| candidates[best(&candidates)].clone());
        let own = &candidates[chosen];
        Self {
            before,
            after: own.scores,
            der: own.der,
            chosen: own.name.clone(),
            oracle,
            clean,
            notes,
            candidates,
        }
    }
}

/// Place of the candidate with the best rating, the first of equals.
fn best(candidates: &[Scored]) -> usize {
    let mut best = 0;
    for (i, candidate) in candidates.iter().enumerate() {
        if candidate.der > candidates[best].der {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use bb_core::metrics::Ratio;
    use serde_json::json;

    fn scores(acc: u64, asr: u64) -> Scores {
        let of = |hits| Ratio { hits, total: 100 };
        Scores {
            acc: of(acc),
            asr: of(asr),
            ra: of(0),
        }
    }

    fn results(after: &[(u64, u64)], chosen: usize) -> Results {
        let measured = after
            .iter()
            .enumerate()
            .map(|(i, &(acc, asr))| (format!("c{i}"), scores(acc, asr), json!({})))
            .collect();
        Results::new(scores(90, 95), measured, chosen, None, json!({}))
    }

    #[test]
    fn the_oracle_is_the_best_rating_and_the_choice_is_the_methods() {
        let found = results(&[(90, 95), (88, 5), (60, 1), (88, 5)], 2);
        assert_eq!((found.chosen.as_str(), found.after), ("c2", scores(60, 1)));
        assert_eq!(
            found.oracle.expect("several candidates").name,
            "c1",
            "the first of equals"
        );
        assert_eq!(found.candidates[0].der, Some(0.5));
        assert_eq!(found.candidates[1].der, Some(0.94));
        assert_eq!(found.der, found.candidates[2].der);
    }

    #[test]
    fn a_single_model_has_no_oracle() {
        let found = results(&[(89, 3)], 0);
        assert_eq!((found.oracle, found.chosen.as_str()), (None, "c0"));
    }

    #[test]
    fn results_survive_a_manifest() {
        let found = results(&[(90, 95), (88, 5)], 1);
        let text = serde_json::to_string(&found).expect("plain data");
        assert_eq!(
            serde_json::from_str::<Results>(&text).expect("the same"),
            found
        );
    }
}
