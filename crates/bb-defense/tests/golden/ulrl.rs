//! ULRL against outputs of the authors' code.

use bb_core::rng;
use bb_defense::finetuning::Stepper as _;
use bb_defense::parts::head;
use bb_defense::robust::deviation;
use bb_defense::ulrl::config::{DetectConfig, UlrlConfig};
use bb_defense::ulrl::detect::{outliers, row_changes};
use bb_defense::ulrl::relearn::{Relearner, Rows, bound};
use bb_defense::unlearning::ascend;
use bb_nn::optim::Sgd;
use bb_nn::{Mode, Net};

use super::{
    Folder, Golden, Setting, check_close, check_flat, check_state, is_close, on_both_folders,
    usizes,
};

on_both_folders!(
    golden_unlearning_and_detection,
    golden_detection_of_made_up_changes,
    golden_relearning
);

/// Starts that are tried; see [`golden_unlearning_and_detection`].
const STARTS: u64 = 40;

/// Moves some weights by one unit in their last place, and none for `start` 0.
fn nudge(net: &mut Net, start: u64) {
    if start == 0 {
        return;
    }
    for i in 0..net.params().layout().entries().len() {
        let mut weights = net.params().to_plain(i);
        let mut stream = rng::stream(start, "nudge", i as u64, 0);
        for weight in &mut weights {
            if rng::below(&mut stream, 16) == 0 {
                *weight = weight.next_up();
            }
        }
        net.params_mut().set_plain(i, &weights);
    }
}

/// In this case some unit stands so near to 0 that the last place of a weight decides about its gradient in the third
/// step, and the ascent, whose loss climbs from 2.5 to 18.6, makes that half a percent of the result. So every start
/// must agree until then and find the same classes, and one of those that differ in last places must agree throughout.
fn golden_unlearning_and_detection(folder: &Folder) {
    let setting = Setting::read(folder);
    let golden = Golden::read(folder, "h_ulrl_unlearn.safetensors");
    let cfg = UlrlConfig::default();
    let start = golden.float("start.linear.weight").to_vec();
    let mut agreed = false;
    for number in 0..STARTS {
        let mut net = setting.net();
        let head = head(&net).expect("a classifier");
        net.params_mut().set_plain(head.weight, &start);
        nudge(&mut net, number);
        let mut sgd = Sgd::new(net.params(), 0.9, 5e-4, false);
        let mut grads = net.zeros();
        let (mut clipped, mut norms_agree) = (0, true);
        for (step, (input, labels)) in setting.batches[..5].iter().enumerate() {
            net.loss_grad(input, labels, Mode::TrainKeepStats, &mut grads);
            let norm = golden.float("grad_norms_before_clip")[step];
            clipped += usize::from(norm > 20.0);
            if step < 2 {
                check_close("norm", grads.norm_l2(), norm, 1e-5);
            }
            norms_agree &= is_close(grads.norm_l2(), norm, 2e-3);
            let clip = Some(cfg.unlearn.clip);
            let loss = ascend(&mut net, &mut sgd, &mut grads, (input, labels), 0.01, clip);
            // The reference keeps the loss that it descends on, which is the negative one.
            let wanted = golden.float("losses")[step].abs();
            check_close("loss", f64::from(loss.mean), wanted, 2e-3);
        }
        assert!(clipped > 0, "the case is meant to clip");
        let changes = row_changes(&start, &net.params().to_plain(head.weight), head.features);
        let found = outliers(&changes, &cfg.detect);
        assert_eq!(found.kept, usizes(golden.integer("indices")));
        let mut pairs = changes.iter().zip(golden.float("changes"));
        agreed = norms_agree
            && pairs.all(|(found, wanted)| is_close(*found, *wanted, 5e-3))
            && is_close(found.median, golden.float("median")[0], 5e-3);
        if agreed {
            break;
        }
    }
    assert!(agreed, "no start of {STARTS} follows the reference");

    // From the reference's own weights there is nothing to add up.
    let theirs = golden.float("unlearned.linear.weight");
    let changes = row_changes(&start, theirs, golden.floats["start.linear.weight"].0[1]);
    for (found, wanted) in changes.iter().zip(golden.float("changes")) {
        check_close("change", *found, *wanted, 1e-5);
    }
    let found = outliers(&changes, &cfg.detect);
    check_close("mad", found.mad, golden.float("mad")[0], 1e-4);
    assert_eq!(found.kept, usizes(golden.integer("indices")));
}

fn golden_detection_of_made_up_changes(folder: &Folder) {
    let golden = Golden::read(folder, "h_ulrl_mad.safetensors");
    let mut cases = 0;
    for case in 0.. {
        let Some((_, changes)) = golden.floats.get(&format!("case{case}.changes")) else {
            break;
        };
        let of = |part: &str| format!("case{case}.{part}");
        let changes: Vec<f64> = changes.iter().map(|&c| f64::from(c)).collect();
        let cfg = UlrlConfig::default().detect;
        let found = outliers(&changes, &cfg);
        check_close("median", found.median, golden.float(&of("median"))[0], 1e-5);
        check_close("mad", found.mad, golden.float(&of("mad"))[0], 1e-5);
        for (change, z) in changes.iter().zip(golden.float(&of("z"))) {
            let own = deviation(*change, found.median, found.mad, cfg.scale);
            let same = (own - f64::from(*z)).abs() <= 1e-4 * own.abs().max(1e-3);
            assert!(same || (!own.is_finite() && !z.is_finite()), "{own} {z}");
        }
        assert_eq!(found.kept, usizes(golden.integer(&of("indices"))));
        assert_eq!(found.found, usizes(golden.integer(&of("indices_uncut"))));
        let all = DetectConfig { max: 100, ..cfg };
        assert_eq!(outliers(&changes, &all).kept, found.found);
        cases += 1;
    }
    assert!(cases > 3, "{cases} cases");
}

fn golden_relearning(folder: &Folder) {
    let setting = Setting::read(folder);
    let golden = Golden::read(folder, "h_ulrl_relearn.safetensors");
    let mut net = setting.net();
    let head = head(&net).expect("a classifier");
    check_close(
        "bound",
        bound(2.0, head.features),
        golden.float("bound_std")[0],
        1e-6,
    );
    let classes = usizes(golden.integer("neuron_indices"));
    let rows = Rows::of(&net, head, &classes);
    let new: Vec<Vec<f32>> = golden
        .float("new_rows")
        .chunks_exact(head.features)
        .map(<[f32]>::to_vec)
        .collect();
    rows.replace(&mut net, &new);
    let cfg = UlrlConfig::default().relearn;
    let mut steps = Relearner::new(&net, &cfg, &rows);
    for (step, (input, labels)) in setting.batches[..2].iter().enumerate() {
        let loss = steps.step(&mut net, input, labels, 0.005);
        check_close(
            "loss",
            f64::from(loss.mean),
            golden.float("losses")[step],
            1e-5,
        );
        if step > 0 {
            continue;
        }
        check_flat(steps.gradient(), &golden, "grad_step0.", 1e-3);
    }
    check_state(&net, &golden, "after2.", 1e-3);
}
