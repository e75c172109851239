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
    /// The best candidate by [`Oracle`], `oracle.safetensors`, if there was more than one. It was found with the test set,
    /// so it says what the method could reach and not what a defender can have. It may be the suspect model, called
    /// [`SUSPECT`].
    pub oracle: Option<Scored>,
    /// The clean images that the method was given; nothing for a data-free one.
    pub clean: Option<Granted>,
    /// What the method itself says.
    pub notes: Value,
}

/// The name of the suspect model among candidates.
pub const SUSPECT: &str = "suspect";

/// What makes a candidate the best one for whoever sees the test set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Oracle {
    /// The highest defense effectiveness rating.
    Rating,
    /// The lowest ASR of those whose ACC is less than the share `tolerance` of the suspect model's away from it; the
    /// suspect model itself if none of them has a lower ASR than that has.
    LowestAsr {
        /// The share, 0 to 1.
        tolerance: f64,
    },
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
    /// The results of a network that another program repaired, in one form and with data that are not known.
    pub fn of_another(before: Scores, after: Scores, name: &str) -> Self {
        let measured = vec![(name.to_owned(), after, Value::Null)];
        Self::new(before, measured, (0, Oracle::Rating), None, Value::Null)
    }

    /// Rates measured candidates, each with its notes, against the suspect model, and finds the best one.
    ///
    /// # Panics
    /// If `chosen` is not the place of a candidate.
    pub(crate) fn new(
        before: Scores,
        measured: Vec<(String, Scores, Value)>,
        (chosen, oracle): (usize, Oracle),
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
        let suspect = || Scored {
            name: SUSPECT.to_owned(),
            scores: before,
            der: der(&before, &before),
            notes: Value::Null,
        };
        let best =
            || best(oracle, &before, &candidates).map_or_else(suspect, |i| candidates[i].clone());
        let oracle = (candidates.len() > 1).then(best);
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

/// Place of the best candidate, the first of equals; nothing if it is the suspect model.
fn best(oracle: Oracle, before: &Scores, candidates: &[Scored]) -> Option<usize> {
    let first_best = |among: &[usize], better: &dyn Fn(&Scored, &Scored) -> bool| {
        let of = |best: usize, i: usize| {
            if better(&candidates[i], &candidates[best]) {
                i
            } else {
                best
            }
        };
        among.iter().copied().reduce(of)
    };
    let all: Vec<usize> = (0..candidates.len()).collect();
    match oracle {
        Oracle::Rating => first_best(&all, &|a, b| a.der > b.der),
        Oracle::LowestAsr { tolerance } => {
            let acc = |scores: &Scores| scores.acc.value().unwrap_or(0.0);
            let near = |own: &Scores| (acc(own) - acc(before)).abs() < tolerance * acc(before);
            let lower = |a: &Scores, b: &Scores| a.asr.value() < b.asr.value();
            let counts = |i: &usize| {
                let own = &candidates[*i].scores;
                near(own) && lower(own, before)
            };
            let among: Vec<usize> = all.into_iter().filter(counts).collect();
            first_best(&among, &|a, b| lower(&a.scores, &b.scores))
        }
    }
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
        by(Oracle::Rating, after, chosen)
    }

    fn by(oracle: Oracle, after: &[(u64, u64)], chosen: usize) -> Results {
        let measured = after
            .iter()
            .enumerate()
            .map(|(i, &(acc, asr))| (format!("c{i}"), scores(acc, asr), json!({})))
            .collect();
        Results::new(scores(90, 95), measured, (chosen, oracle), None, json!({}))
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
    fn the_lowest_asr_counts_where_the_accuracy_bears_it() {
        let oracle = |tolerance, after: &[(u64, u64)]| {
            let found = by(Oracle::LowestAsr { tolerance }, after, 0);
            found.oracle.expect("several candidates").name
        };
        // 10 of 90 are more than a tenth of it.
        let after = [(90, 95), (80, 0), (82, 7), (85, 7), (88, 40), (98, 8)];
        assert_eq!(oracle(0.1, &after), "c2", "the first of equals");
        assert_eq!(oracle(0.2, &after), "c1");
        // The suspect model has 90 and 95. Where none near it has fewer attacks, it stays.
        assert_eq!(oracle(0.1, &[(50, 90), (60, 5), (20, 0)]), "suspect");
        assert_eq!(oracle(0.1, &[(90, 95), (88, 96)]), "suspect");
        assert_eq!(oracle(0.1, &[(90, 95), (88, 94)]), "c1");
        let found = by(Oracle::LowestAsr { tolerance: 0.1 }, &[(50, 5), (20, 0)], 0);
        let oracle = found.oracle.expect("several candidates");
        assert_eq!((oracle.scores, oracle.der), (found.before, Some(0.5)));
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
