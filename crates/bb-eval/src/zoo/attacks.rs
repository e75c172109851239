//! Names of attacks, as people and BackdoorBench write them.

use bb_attack::registry::ATTACKS;
use bb_core::settings::nearest;

use super::ZooError;

/// The name of a cell's attack where nobody says which it was.
pub const UNKNOWN: &str = "imported";

/// BackdoorBench's names for attacks that have another one here.
const OTHERS: &[(&str, &str)] = &[
    ("badnet", "badnets"),
    ("lowfrequency", "lf"),
    ("trojannn", "trojan"),
];

/// The attack that is meant by a name: ours, BackdoorBench's, in whatever case and with whatever dashes.
///
/// # Errors
/// [`ZooError::Attack`] with the nearest known one.
pub fn attack_name(name: &str) -> Result<&'static str, ZooError> {
    let plain = |name: &str| -> String {
        let letters = name.chars().filter(char::is_ascii_alphanumeric);
        letters.collect::<String>().to_lowercase()
    };
    let ids = || ATTACKS.iter().map(|attack| attack.info().id);
    let known = ids().chain([UNKNOWN]).map(|id| (id, id));
    let mut all = known.chain(OTHERS.iter().copied());
    if let Some((_, id)) = all.find(|(known, _)| plain(known) == plain(name)) {
        return Ok(id);
    }
    let others = OTHERS.iter().map(|(other, _)| *other);
    let near = nearest(name, ids().chain(others));
    let own = |near: &str| OTHERS.iter().find(|(other, _)| *other == near);
    Err(ZooError::Attack {
        found: name.to_owned(),
        known: ids().collect::<Vec<_>>().join(", "),
        near: near.map(|near| own(near).map_or(near, |(_, id)| *id).to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_benchmark_are_understood_and_others_are_not_guessed() {
        for (name, expected) in [
            ("badnet", "badnets"),
            ("BadNets", "badnets"),
            ("blended", "blended"),
            ("inputaware", "inputaware"),
            ("input-aware", "inputaware"),
            ("low_frequency", "lf"),
            ("lf", "lf"),
            ("sig", "sig"),
            ("ssba", "ssba"),
            ("TrojanNN", "trojan"),
            ("wanet", "wanet"),
            ("clean", "clean"),
            ("imported", "imported"),
        ] {
            assert_eq!(attack_name(name).ok(), Some(expected), "{name}");
        }
        for (name, expected) in [
            ("bandet", Some("badnets")),
            ("trojan-nnn", Some("trojan")),
            ("refool", None),
            ("", None),
        ] {
            match attack_name(name) {
                Err(ZooError::Attack { near, .. }) => assert_eq!(near.as_deref(), expected),
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}
