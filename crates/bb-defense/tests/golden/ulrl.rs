//! ULRL against outputs of the authors' code.

use bb_defense::finetuning::Stepper as _;
use bb_defense::parts::head;
use bb_defense::robust::deviation;
use bb_defense::ulrl::config::{DetectConfig, UlrlConfig};
use bb_defense::ulrl::detect::{outliers, row_changes};
use bb_defense::ulrl::relearn::{Relearner, Rows, bound};
use bb_defense::unlearning::ascend;
use bb_nn::Mode;
use bb_nn::optim::Sgd;

use super::{Golden, Setting, check_close, check_state, usizes};

/// How close the gradient's norm is in each step. The loss climbs from 2.5 to 18.6 in five steps, and each makes the
/// difference that rounding left in the one before several times as large; the first two agree to the last digits.
const NORMS: [f64; 5] = [1e-5, 1e-5, 1e-3, 1e-2, 2e-2];

#[test]
fn golden_unlearning_and_detection() {
    let (Some(setting), Some(golden)) =
        (Setting::read(), Golden::read("h_ulrl_unlearn.safetensors"))
    else {
        return;
    };
    let mut net = setting.net();
    let head = head(&net).expect("a classifier");
    let start = golden.float("start.linear.weight").to_vec();
    net.params_mut().set_plain(head.weight, &start);
    let cfg = UlrlConfig::default();
    let mut sgd = Sgd::new(net.params(), 0.9, 5e-4, false);
    let mut grads = net.zeros();
    let mut clipped = 0;
    for (step, (input, labels)) in setting.batches[..5].iter().enumerate() {
        net.loss_grad(input, labels, Mode::TrainKeepStats, &mut grads);
        let norm = golden.float("grad_norms_before_clip")[step];
        check_close("norm", grads.norm_l2(), norm, NORMS[step]);
        clipped += usize::from(norm > 20.0);
        let clip = Some(cfg.unlearn.clip);
        let loss = ascend(&mut net, &mut sgd, &mut grads, (input, labels), 0.01, clip);
        // The reference keeps the loss that it descends on, which is the negative one.
        let wanted = golden.float("losses")[step].abs();
        check_close("loss", f64::from(loss.mean), wanted, 2e-3);
    }
    assert!(clipped > 0, "the case is meant to clip");
    let changes = row_changes(&start, &net.params().to_plain(head.weight), head.features);
    for (found, wanted) in changes.iter().zip(golden.float("changes")) {
        check_close("change", *found, *wanted, 2e-2);
    }
    let found = outliers(&changes, &cfg.detect);
    check_close("median", found.median, golden.float("median")[0], 2e-2);
    assert_eq!(found.kept, usizes(golden.integer("indices")));

    // From the reference's own weights there is nothing to add up.
    let theirs = golden.float("unlearned.linear.weight");
    let changes = row_changes(&start, theirs, head.features);
    for (found, wanted) in changes.iter().zip(golden.float("changes")) {
        check_close("change", *found, *wanted, 1e-5);
    }
    let found = outliers(&changes, &cfg.detect);
    check_close("mad", found.mad, golden.float("mad")[0], 1e-4);
    assert_eq!(found.kept, usizes(golden.integer("indices")));
}

#[test]
fn golden_detection_of_made_up_changes() {
    let Some(golden) = Golden::read("h_ulrl_mad.safetensors") else {
        return;
    };
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

#[test]
fn golden_relearning() {
    let (Some(setting), Some(golden)) =
        (Setting::read(), Golden::read("h_ulrl_relearn.safetensors"))
    else {
        return;
    };
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
        let gradient = steps.gradient();
        for (i, entry) in gradient.layout().entries().iter().enumerate() {
            let want = golden.float(&format!("grad_step0.{}", entry.name));
            let square = |values: &mut dyn Iterator<Item = f32>| {
                values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
            };
            let own = gradient.to_plain(i);
            let error = square(&mut own.iter().zip(want).map(|(a, b)| a - b));
            let norm = square(&mut want.iter().copied());
            assert!(error <= 1e-3 * norm, "{}: {:e}", entry.name, error / norm);
        }
    }
    check_state(&net, &golden, "after2.", 1e-3);
}
