//! CLP against outputs of the benchmark's code.

use std::collections::BTreeMap;

use bb_defense::clp::config::Pairing;
use bb_defense::clp::{lipschitz, pairs, prune, threshold};

use super::{Folder, Golden, Setting, check_close, on_both_folders};

on_both_folders!(golden_bounds_thresholds_and_pruned_channels);

fn golden_bounds_thresholds_and_pruned_channels(folder: &Folder) {
    let setting = Setting::read(folder);
    let golden = Golden::read(folder, "i_clp.safetensors");
    let mut net = setting.net();
    let pairs = pairs(&net, Pairing::LastSeen);
    let name = |i: usize| net.params().layout().entries()[i].name.clone();
    let strip = |name: String| name.trim_end_matches(".weight").to_owned();
    let named: Vec<(String, String)> = pairs
        .iter()
        .map(|pair| (strip(name(pair.norm)), strip(name(pair.conv))))
        .collect();
    let stored: BTreeMap<String, String> =
        serde_json::from_str(&golden.metadata["bn_to_conv"]).expect("a map of names");
    assert_eq!(named.iter().cloned().collect::<BTreeMap<_, _>>(), stored);

    for (pair, (norm, _)) in pairs.iter().zip(&named) {
        let gamma = golden.float(&format!("bn_weight.{norm}")).to_vec();
        net.params_mut().set_plain(pair.norm, &gamma);
    }
    let mut bounds = Vec::new();
    for (pair, (norm, _)) in pairs.iter().zip(&named) {
        let own = lipschitz(&net, pair, 0.0);
        let stored = golden.float(&format!("lips.{norm}"));
        assert_eq!(own.len(), stored.len());
        for (found, wanted) in own.iter().zip(stored) {
            check_close(norm, *found, *wanted, 1e-4);
        }
        let wanted = golden.float(&format!("threshold_u3.{norm}"))[0];
        check_close(norm, threshold(&own, 3.0), wanted, 1e-4);
        bounds.push(own);
    }
    for u in [1, 3] {
        let mut params = net.params().clone();
        let count = prune(&mut params, &pairs, &bounds, f64::from(u));
        let mut wanted = 0;
        for (pair, (norm, _)) in pairs.iter().zip(&named) {
            let mask = golden.integer(&format!("pruned_u{u}.{norm}"));
            let (gamma, beta) = (params.to_plain(pair.norm), params.to_plain(pair.norm + 1));
            let before = net.params().to_plain(pair.norm + 1);
            for (channel, &mask) in mask.iter().enumerate() {
                assert_eq!(gamma[channel] == 0.0, mask == 1, "{norm} {channel}");
                if mask == 1 {
                    assert_eq!(beta[channel].to_bits(), 0);
                } else {
                    assert_eq!(beta[channel].to_bits(), before[channel].to_bits());
                }
                wanted += usize::from(mask == 1);
            }
        }
        assert_eq!((count, count > 0), (wanted, true));
    }
}
