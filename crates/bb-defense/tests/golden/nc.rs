//! NC against outputs of the benchmark's code.

use bb_core::data::spec;
use bb_defense::nc::config::{InvertConfig, NcConfig, Normalisation};
use bb_defense::nc::detect::outliers;
use bb_defense::nc::invert::Inverter;
use bb_nn::Mode;

use super::{Folder, Golden, Setting, check_close, check_relative, on_both_folders, usizes};

on_both_folders!(golden_inversion, golden_outliers);

const CLASS: u32 = 3;
const COST: f64 = 1e-3;

fn check_within(what: &str, found: &[f32], wanted: &[f32], tolerance: f32) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    for (found, wanted) in found.iter().zip(wanted) {
        let close = (found - wanted).abs() <= tolerance;
        assert!(close, "{what}: {found} against {wanted}");
    }
}

fn golden_inversion(folder: &Folder) {
    let setting = Setting::read(folder);
    let golden = Golden::read(folder, "l_nc.safetensors");
    let task = spec("cifar10").expect("a dataset");
    let mut net = setting.net();
    let cfg = InvertConfig {
        normalise: Normalisation::Rows,
        ..NcConfig::default().invert
    };
    let mut inverter = Inverter::new(&cfg, task);
    let names = ["mask", "pattern"];
    for (i, name) in names.iter().enumerate() {
        let start = golden.float(&format!("init_{name}_tanh"));
        inverter.variables_mut().set_plain(i, start);
    }
    let trigger = inverter.trigger();
    check_within("mask", trigger.mask(), golden.float("raw_mask0"), 1e-6);
    let pattern = golden.float("raw_pattern0");
    check_within("pattern", trigger.pattern(), pattern, 1e-6);
    let (first, second) = (&setting.batches[0].0, &setting.batches[1].0);
    let stamped = trigger.placed(task, cfg.normalise).stamp(first);
    let logits = setting.net().forward(&stamped, Mode::Eval);
    check_within("logits", &logits, golden.float("logits0"), 2e-5);

    let found = inverter.step(&mut net, first, CLASS, COST);
    let loss = f64::from(found.loss.mean);
    check_close("loss", loss, golden.float("loss_ce0")[0], 1e-4);
    check_close("norm", found.norm, golden.float("loss_reg0")[0], 1e-3);
    let total = loss + COST * found.norm;
    check_close("total", total, golden.float("loss_total0")[0], 1e-4);
    for (i, name) in names.iter().enumerate() {
        let wanted = golden.float(&format!("grad_{name}0"));
        check_relative(name, inverter.gradient().tensor(i), wanted, 1e-3);
    }

    inverter.step(&mut net, second, CLASS, COST);
    for (i, name) in names.iter().enumerate() {
        let wanted = golden.float(&format!("{name}_tanh_after2"));
        let own = inverter.variables().tensor(i);
        assert_eq!(own.len(), wanted.len(), "{name}");
        // Adam makes whole steps of gradients that are next to nothing.
        let apart = own
            .iter()
            .zip(wanted)
            .filter(|(own, wanted)| (*own - *wanted).abs() > 1e-3);
        let apart = apart.count();
        assert!(apart * 100 <= own.len(), "{name}: {apart} of {}", own.len());
    }
}

fn golden_outliers(folder: &Folder) {
    let golden = Golden::read(folder, "l_nc.safetensors");
    let norms: Vec<f64> = golden
        .float("outlier.l1")
        .iter()
        .map(|&norm| f64::from(norm))
        .collect();
    let found = outliers(&norms, &NcConfig::default().detect);
    let wanted = |name: &str| golden.float(&format!("outlier.{name}"))[0];
    check_close("median", found.median, wanted("median"), 1e-5);
    check_close("deviation", found.deviation, wanted("mad"), 1e-5);
    let anomaly = found.anomaly.expect("a number");
    check_close("anomaly", anomaly, wanted("anomaly_index"), 1e-5);
    assert_eq!(found.flagged, usizes(golden.integer("outlier.flagged")));
}
