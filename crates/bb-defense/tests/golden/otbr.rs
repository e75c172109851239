//! OTBR against outputs of the authors' code and of the transport solver that it uses.

use bb_defense::nwc::{count_of, rank_descending, round_decimals};
use bb_defense::otbr::config::OtbrConfig;
use bb_defense::otbr::transport::{Plan, solve};
use bb_defense::otbr::unlearn::Targets;
use bb_defense::otbr::{fuse, prune};
use bb_defense::unlearning::ascend;
use bb_nn::data::Input;
use bb_nn::optim::Sgd;

use super::{
    Folder, Golden, Setting, check_close, check_relative, on_both_folders, signed, usizes,
};

on_both_folders!(
    golden_transport,
    golden_random_unlearning_and_pruning,
    golden_fusion
);

/// The share of neurons the goldens were made with.
const GAMMA: f64 = 0.1;

fn golden_transport(folder: &Folder) {
    let golden = Golden::read(folder, "g_emd_f64.safetensors");
    for case in ["dense", "uniform_p", "rect"] {
        let of = |part: &str| golden.doubles[&format!("{case}.{part}")].as_slice();
        let (p, q, costs) = (of("p"), of("q"), of("cost"));
        let plan = solve(p, q, costs).expect("a problem");
        let optimum: f64 = of("plan").iter().zip(costs).map(|(p, c)| p * c).sum();
        let stored = golden.float(&format!("{case}.cost_opt"))[0];
        check_close(case, optimum, stored, 1e-6);
        assert!((plan.cost(costs) - optimum).abs() <= 1e-9, "{case}");
        let mut dense = vec![0.0; p.len() * q.len()];
        for &(i, j, mass) in &plan.moves {
            dense[i * q.len() + j] = mass;
        }
        for (found, wanted) in dense.iter().zip(of("plan")) {
            assert!((found - wanted).abs() <= 1e-7, "{case}: {found} {wanted}");
        }
    }
}

/// The stored noise, unlearned, gives the reference's weight changes, and these its order and its pruned neurons.
fn golden_random_unlearning_and_pruning(folder: &Folder) {
    let setting = Setting::read(folder);
    let golden = Golden::read(folder, "g_otbr.safetensors");
    let mut net = setting.net();
    let cfg = OtbrConfig::default();
    let targets = Targets::new(net.params(), &cfg.layers.exclude).expect("target layers");
    let original = net.params().clone();
    let (shape, x) = &golden.floats["rand_x"];
    let (steps, size) = (shape[0], shape[1]);
    let labels = golden.integer("rand_y");
    let mut sgd = Sgd::new(net.params(), 0.9, 0.0, false);
    let mut grads = net.zeros();
    for step in 0..steps {
        let own = &x[step * x.len() / steps..][..x.len() / steps];
        let input = Input::from_nchw(size, shape[3], shape[4], own);
        let labels: Vec<u32> = labels[step * size..][..size]
            .iter()
            .map(|&l| u32::try_from(l).expect("a class"))
            .collect();
        ascend(
            &mut net,
            &mut sgd,
            &mut grads,
            (&input, &labels),
            0.002,
            None,
        );
    }
    let nwc = targets.nwc(&original, net.params());
    for (neuron, (got, want)) in nwc.iter().zip(golden.float("nwc")).enumerate() {
        check_close(&format!("NWC of {neuron}"), f64::from(*got), *want, 1e-3);
    }

    let stored = golden.float("nwc_4dp");
    let scores: Vec<f64> = stored.iter().map(|&v| round_decimals(v, 4)).collect();
    let order = rank_descending(&scores);
    assert_eq!(order, usizes(golden.integer("order_desc")));
    let count = count_of(targets.neurons(), GAMMA);
    assert_eq!(signed(count), golden.integer("top_num")[0]);
    let mut pruned = original.clone();
    prune(&mut pruned, &targets, &order[..count]);
    let mask = golden.integer("pruned_mask");
    let mut compared = 0;
    for (layer, &tensor) in targets.tensors.iter().enumerate() {
        let own = targets.of(layer);
        let (before, after) = (original.to_plain(tensor), pruned.to_plain(tensor));
        let row = before.len() / own.len();
        for (channel, neuron) in own.enumerate() {
            let (before, after) = (
                &before[channel * row..][..row],
                &after[channel * row..][..row],
            );
            if mask[neuron] == 1 {
                assert!(after.iter().all(|w| *w == 0.0), "neuron {neuron}");
            } else {
                assert_eq!(before, after, "neuron {neuron}");
            }
            compared += 1;
        }
    }
    assert_eq!(compared, mask.len());
}

/// Our solver reaches the reference's cost in every layer, and fusion with the stored plans its weights.
fn golden_fusion(folder: &Folder) {
    let setting = Setting::read(folder);
    let unlearned = Golden::read(folder, "g_otbr.safetensors");
    let golden = Golden::read(folder, "g_otbr_fused.safetensors");
    let net = setting.net();
    let cfg = OtbrConfig::default();
    let targets = Targets::new(net.params(), &cfg.layers.exclude).expect("target layers");
    let stored = unlearned.float("nwc_4dp");
    let scores: Vec<f64> = stored.iter().map(|&v| round_decimals(v, 4)).collect();
    let order = usizes(unlearned.integer("order_desc"));
    let selected = &order[..count_of(targets.neurons(), GAMMA)];
    let mut pruned = net.params().clone();
    prune(&mut pruned, &targets, selected);

    let mut fused = net.params().clone();
    let mut layers = 0;
    let found = fuse(
        &cfg.fusion,
        (net.params(), &pruned),
        &targets,
        (&scores, selected),
        &mut fused,
        &mut |problem| {
            let of = |part: &str| golden.float(&format!("plan.{}.{part}", problem.layer));
            let size = problem.target.len();
            for (own, q) in problem.target.iter().zip(of("q")) {
                check_close(&format!("mass in {}", problem.layer), *own, *q, 1e-5);
            }
            let source: Vec<f64> = of("p").iter().map(|&p| f64::from(p)).collect();
            if let Some((_, costs)) = golden.floats.get(&format!("plan.{}.cost", problem.layer)) {
                // The reference's distances come from products where there are many neurons.
                for (own, cost) in problem.costs.iter().zip(costs) {
                    assert!((own - f64::from(*cost)).abs() <= 2e-3, "{own} {cost}");
                }
                let costs: Vec<f64> = costs.iter().map(|&c| f64::from(c)).collect();
                let masses: Vec<f64> = of("q").iter().map(|&q| f64::from(q)).collect();
                let plan = solve(&source, &masses, &costs).expect("a problem");
                let what = format!("cost in {}", problem.layer);
                check_close(&what, plan.cost(&costs), of("cost_opt")[0], 1e-6);
            }
            let own = solve(&source, problem.target, problem.costs).expect("a problem");
            // Up to 1e-3 of a distance between equal neurons is the reference's rounding.
            let optimum = f64::from(of("cost_opt")[0]);
            let found = own.cost(problem.costs);
            assert!((found - optimum).abs() <= 1e-3, "{found} {optimum}");
            layers += 1;
            Ok(Plan::from_dense(size, size, of("P")))
        },
    )
    .expect("fused");
    assert_eq!((found.layers, layers > 1), (layers, true));

    let mut compared = 0;
    for &tensor in &targets.tensors {
        let name = &fused.layout().entries()[tensor].name;
        let want = golden.float(&format!("fused.{name}"));
        let got = fused.to_plain(tensor);
        check_relative(name, &got, want, 1e-4);
        compared += 1;
    }
    assert_eq!(compared, golden.layers().len());
}
