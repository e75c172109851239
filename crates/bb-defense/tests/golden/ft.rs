//! FT against the benchmark's run of it.

use bb_defense::finetuning::{FinetuneConfig, ScheduleConfig, ScheduleKind};
use bb_defense::ft::Ft;
use bb_nn::schedule::PlateauState;

use super::baseline::{Baseline, Stored};

/// Settings of the run that its YAML file does not have, for the stage of plain fine-tuning.
pub(crate) const PLAIN: [&str; 4] = [
    "finetune.batch_size=4",
    "finetune.shuffle=false",
    "finetune.augment=false",
    "finetune.schedule.t_max=4",
];

/// Three epochs of two batches of four images and one of two.
#[test]
fn golden_run() {
    let (baseline, golden) = (Baseline::read(), Stored::read("ft"));
    let set = [&PLAIN[..], &["finetune.epochs=3"]].concat();
    let repaired = baseline.repaired::<Ft>(&set);
    golden.check_state(&repaired.candidates[0].state, "after", 1e-5);
}

/// The rate of each step of the runs, and that of PyTorch's plateau for a made-up course of losses.
#[test]
fn golden_rates() {
    let golden = Stored::read("ft");
    let cosine = FinetuneConfig {
        schedule: ScheduleConfig {
            t_max: 4,
            ..FinetuneConfig::default().schedule
        },
        ..FinetuneConfig::default()
    };
    let rate = |cfg: &FinetuneConfig, epoch, state: &PlateauState| {
        cfg.schedule().rate(cfg.lr, (epoch, 3), (0, 3), state)
    };
    let state = PlateauState::default();
    for (step, wanted) in golden.get("rates").iter().enumerate() {
        let found = rate(&cosine, step / 3, &state);
        assert!((found - wanted).abs() <= 1e-12, "step {step}: {found}");
    }

    let plateau = FinetuneConfig {
        schedule: ScheduleConfig {
            kind: ScheduleKind::Plateau,
            ..FinetuneConfig::default().schedule
        },
        ..FinetuneConfig::default()
    };
    let mut state = PlateauState::default();
    let wanted = golden.get("plateau_rates");
    for (epoch, (loss, wanted)) in golden.get("plateau_losses").iter().zip(wanted).enumerate() {
        let found = rate(&plateau, epoch, &state);
        assert!((found - wanted).abs() <= 1e-12, "epoch {epoch}: {found}");
        state.record(&plateau.schedule(), *loss);
    }
}
