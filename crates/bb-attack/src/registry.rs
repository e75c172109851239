//! The list of attacks. A new attack is a folder and one line here.

use bb_core::method::{UnknownMethod, find_by_id};

use crate::badnets::BadNets;
use crate::blended::Blended;
use crate::clean::Clean;
use crate::inputaware::InputAware;
use crate::lf::Lf;
use crate::method::{AnyAttack, erase};
use crate::sig::Sig;
use crate::ssba::Ssba;
use crate::trojan::Trojan;
use crate::wanet::Wanet;

/// Clean training, then all attacks in the order of the papers' tables.
pub static ATTACKS: &[&dyn AnyAttack] = &[
    erase::<Clean>(),
    erase::<BadNets>(),
    erase::<Blended>(),
    erase::<Lf>(),
    erase::<Sig>(),
    erase::<Ssba>(),
    erase::<Trojan>(),
    erase::<Wanet>(),
    erase::<InputAware>(),
];

/// The attack of this name.
pub fn find(name: &str) -> Result<&'static dyn AnyAttack, UnknownMethod> {
    find_by_id("attack", name, ATTACKS, |attack| attack.info()).copied()
}

#[cfg(test)]
mod tests {
    use bb_core::method::check_headings;

    use super::*;
    use crate::method::Given;
    use crate::recipes;

    #[test]
    fn ids_are_unique_and_found() {
        for (k, attack) in ATTACKS.iter().enumerate() {
            let id = attack.info().id;
            assert_eq!(ATTACKS.iter().position(|a| a.info().id == id), Some(k));
            assert_eq!(find(id).expect("registered").info().id, id);
        }
    }

    #[test]
    fn every_head_comment_has_the_headings_and_names_every_setting() {
        for attack in ATTACKS {
            let docs = attack.info().docs;
            assert_eq!(check_headings(docs), [""; 0], "{}", attack.info().id);
            let ready = attack
                .resolve("folder", &Given::default())
                .expect("valid defaults");
            for (key, ..) in ready.origins() {
                let named = key.starts_with("train.") || docs.contains(&format!("`{key}` ("));
                assert!(
                    named,
                    "{}: setting `{key}` is not documented",
                    attack.info().id
                );
            }
        }
    }

    #[test]
    fn every_dataset_has_a_recipe_that_resolves() {
        for attack in ATTACKS {
            let id = attack.info().id;
            for dataset in ["cifar10", "cifar100", "gtsrb", "tiny", "synthetic"] {
                let recipe = recipes::find(id, dataset).expect("a recipe is committed");
                let command = format!("# bb-attack {id} --dataset {dataset}");
                assert!(
                    recipe.text.lines().any(|line| line.starts_with(&command)),
                    "{}",
                    recipe.path
                );
                attack
                    .resolve(dataset, &Given::default())
                    .expect("a valid recipe");
            }
        }
    }

    #[test]
    fn the_defaults_are_the_settings_for_cifar10() {
        for attack in ATTACKS {
            let given = Given::default();
            // The first has no recipe.
            let [defaults, recipe] = ["folder", "cifar10"]
                .map(|dataset| attack.resolve(dataset, &given).expect("valid settings"));
            let id = attack.info().id;
            let mut differ = Vec::new();
            let pairs = defaults.origins().iter().zip(recipe.origins());
            for ((key, ours, _), (_, theirs, _)) in pairs.filter(|(a, b)| a.1 != b.1) {
                differ.push(format!("{id}: {key} = {ours}, {theirs} for cifar10"));
            }
            // Counting the mask's epochs as the network's is a quirk of the bench, which a table of its numbers needs.
            differ.retain(|line| line != "inputaware: mask.counted = false, true for cifar10");
            assert!(differ.is_empty(), "{differ:#?}");
        }
    }

    #[test]
    fn the_short_recipe_fits_every_attack() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/attack");
        let folder = std::path::Path::new(folder);
        for attack in ATTACKS {
            // Some have settings of their own to be shortened.
            let own = folder.join(attack.info().id).join("short.toml");
            let mut files = vec![folder.join("short.toml")];
            files.extend(own.exists().then_some(own));
            let given = Given {
                files,
                ..Given::default()
            };
            let ready = attack.resolve("cifar10", &given).expect("a valid recipe");
            assert!(ready.recipe().epochs < 30);
            // The harness adds these two tables to the settings of a cell.
            assert!(ready.tree().get("data").is_none() && ready.tree().get("model").is_none());
        }
    }

    #[test]
    fn unknown_settings_are_refused() {
        for attack in ATTACKS {
            let given = Given {
                set: vec!["train.learning_rate=1".to_owned()],
                ..Given::default()
            };
            let error = attack
                .resolve("cifar10", &given)
                .err()
                .expect("no such setting");
            assert!(
                error.to_string().contains("`train.learning_rate`"),
                "{error}"
            );
        }
    }
}
