//! FP against outputs of the benchmark's code.

use std::borrow::Cow;

use bb_defense::fp::{activations, ascending, mask};
use bb_defense::parts::head;
use bb_nn::Mode;

use super::{Folder, Golden, Setting, on_both_folders, usizes};

on_both_folders!(golden_activations_order_and_mask);

fn golden_activations_order_and_mask(folder: &Folder) {
    let setting = Setting::read(folder);
    let golden = Golden::read(folder, "j_fp.safetensors");
    let mut net = setting.net();
    let head = head(&net).expect("a classifier");
    let inputs = setting
        .batches
        .iter()
        .map(|(input, _)| Cow::Borrowed(input));
    let found = activations(&mut net, head, inputs);
    let stored = golden.float("activation");
    for (found, wanted) in found.iter().zip(stored) {
        assert!(
            (found - f64::from(*wanted)).abs() <= 1e-5,
            "{found} {wanted}"
        );
    }
    // Where two activations are closer than the rounding of either, any order is right.
    let order = ascending(&found);
    for (own, theirs) in order.iter().zip(usizes(golden.integer("seq_sort"))) {
        assert!(
            (stored[*own] - stored[theirs]).abs() <= 1e-5,
            "{own} {theirs}"
        );
    }
    let exact: Vec<f64> = stored.iter().map(|&v| f64::from(v)).collect();
    let order = ascending(&exact);
    assert_eq!(order, usizes(golden.integer("seq_sort")));

    // Nine are said, eight are masked.
    mask(&mut net, head, &order[..8]);
    let weight = net.params().to_plain(head.weight);
    for (weight, mask) in weight.iter().zip(golden.integer("mask_num_pruned_9")) {
        assert_eq!(*weight == 0.0, *mask == 0);
    }
    let logits = net.forward(&setting.batches[0].0, Mode::Eval);
    for (found, wanted) in logits.iter().zip(golden.float("logits_after_num_pruned_9")) {
        assert!((found - wanted).abs() <= 2e-5, "{found} {wanted}");
    }
}
