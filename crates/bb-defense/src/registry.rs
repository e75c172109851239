//! The list of defenses. A new defense is a folder and one line here; one of another crate comes in a slice beside it.

use bb_core::method::{UnknownMethod, find_by_id};

use crate::anp::Anp;
use crate::clp::Clp;
use crate::fp::Fp;
use crate::ft::Ft;
use crate::ibau::Ibau;
use crate::method::AnyDefense;
use crate::nad::Nad;
use crate::nc::Nc;
use crate::otbr::Otbr;
use crate::rnp::Rnp;
use crate::tsbd::Tsbd;
use crate::ulrl::Ulrl;

/// All defenses of this crate, in the order of the papers' tables.
pub static DEFENSES: &[&dyn AnyDefense] = &[
    &Ft, &Fp, &Nad, &Nc, &Anp, &Clp, &Ibau, &Rnp, &Tsbd, &Otbr, &Ulrl,
];

/// This crate's defenses and then `extra`, those of other crates.
pub fn all(extra: &[&'static dyn AnyDefense]) -> Vec<&'static dyn AnyDefense> {
    DEFENSES.iter().chain(extra).copied().collect()
}

/// The defense of this name, in this crate or in `extra`.
pub fn find(
    name: &str,
    extra: &[&'static dyn AnyDefense],
) -> Result<&'static dyn AnyDefense, UnknownMethod> {
    find_by_id("defense", name, &all(extra), |defense| defense.info()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::Given;
    use bb_core::method::{Needs, check_headings};
    use std::collections::BTreeSet;

    const DATASETS: [&str; 5] = ["cifar10", "cifar100", "gtsrb", "tiny", "synthetic"];

    #[test]
    fn ids_are_unique_and_found() {
        let ids: BTreeSet<&str> = DEFENSES.iter().map(|defense| defense.info().id).collect();
        assert_eq!(ids.len(), DEFENSES.len());
        for id in ids {
            assert_eq!(
                find(id, &[]).map(|defense| defense.info().id).ok(),
                Some(id)
            );
        }
        let error = find("tsdb", &[]).map(|_| ()).expect_err("no such defense");
        assert_eq!(
            error.to_string(),
            "unknown defense `tsdb`, known are `ft`, `fp`, `nad`, `nc`, `anp`, `clp`, `ibau`, `rnp`, `tsbd`, `otbr`, `ulrl`"
        );
    }

    #[test]
    fn every_head_comment_has_the_headings_and_names_every_setting() {
        for defense in DEFENSES {
            let info = defense.info();
            assert_eq!(check_headings(info.docs), Vec::<&str>::new(), "{}", info.id);
            assert_ne!(info.needs, Needs::Nothing, "{}", info.id);
            let ready = defense
                .resolve("folder", &Given::default())
                .expect("valid defaults");
            for (key, ..) in ready.origins() {
                let named = info.docs.contains(&format!("`{key}` ("));
                assert!(named, "{}: setting `{key}` is not documented", info.id);
            }
        }
    }

    #[test]
    fn every_dataset_has_a_recipe_that_resolves() {
        for defense in DEFENSES {
            let id = defense.info().id;
            for dataset in DATASETS {
                let recipe = defense
                    .recipes()
                    .iter()
                    .find(|recipe| recipe.dataset == dataset);
                let recipe = recipe.unwrap_or_else(|| panic!("{id} has no recipe for {dataset}"));
                assert_eq!(recipe.path, format!("configs/defense/{id}/{dataset}.toml"));
                let command = format!("# bb-defense {id} --model CELL");
                assert!(
                    recipe.text.lines().any(|line| line.starts_with(&command)),
                    "{}",
                    recipe.path
                );
                defense
                    .resolve(dataset, &Given::default())
                    .expect("a valid recipe");
            }
            let mut recipes: Vec<&str> = defense
                .recipes()
                .iter()
                .map(|recipe| recipe.dataset)
                .collect();
            recipes.sort_unstable();
            recipes.dedup();
            assert_eq!(
                recipes.len(),
                defense.recipes().len(),
                "{id} has two recipes for one dataset"
            );
        }
    }

    #[test]
    fn short_recipes_resolve_over_the_committed_ones() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/defense");
        for defense in DEFENSES {
            let id = defense.info().id;
            let path = std::path::Path::new(folder).join(id).join("short.toml");
            // Most defenses need none.
            let Ok(text) = fs_err::read_to_string(&path) else {
                continue;
            };
            let command = format!(
                "# bb-defense {id} --model CELL --data DIR -c configs/defense/{id}/short.toml"
            );
            assert!(text.lines().any(|line| line.starts_with(&command)), "{id}");
            let given = Given {
                files: vec![path],
                ..Given::default()
            };
            for dataset in DATASETS {
                let short = defense.resolve(dataset, &given).expect("a valid recipe");
                let whole = defense
                    .resolve(dataset, &Given::default())
                    .expect("a valid recipe");
                assert_ne!(short.tree(), whole.tree(), "{id}, {dataset}");
            }
        }
    }

    #[test]
    fn what_is_written_as_a_settings_file_reads_back_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.toml");
        for defense in DEFENSES {
            let first = defense
                .resolve("cifar10", &Given::default())
                .expect("a valid recipe");
            fs_err::write(&path, first.to_toml()).expect("written");
            let given = Given {
                files: vec![path.clone()],
                ..Given::default()
            };
            assert_eq!(
                defense.resolve("", &given).expect("the same").tree(),
                first.tree()
            );
        }
    }

    #[test]
    fn unknown_settings_are_refused() {
        for defense in DEFENSES {
            let given = Given {
                set: vec!["no_such_setting=1".to_owned()],
                ..Given::default()
            };
            let error = defense
                .resolve("cifar10", &given)
                .err()
                .expect("no such setting");
            assert!(error.to_string().contains("`no_such_setting`"), "{error}");
        }
    }
}
