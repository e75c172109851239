//! Learning-rate schedules.

use serde::{Deserialize, Serialize};

/// Which schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// The same rate throughout.
    Constant,
    /// `lr * gamma^(epoch / step_size)`, PyTorch's `StepLR`.
    Step,
    /// `lr * gamma^(milestones passed)`, PyTorch's `MultiStepLR`.
    Multistep,
    /// `min_lr + (lr - min_lr) (1 + cos(pi epoch / t_max)) / 2`, PyTorch's `CosineAnnealingLR`, once per epoch.
    Cosine,
    /// Per step: linear from 0 to `lr` over the first `warmup` share of all steps, then linear to `min_lr`.
    Triangle,
    /// `lr * gamma` each time the mean training loss has not improved for `patience` epochs, PyTorch's
    /// `ReduceLROnPlateau` with relative threshold 1e-4.
    Plateau,
}

/// A schedule's settings. Those another kind would use are ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// Which schedule.
    pub kind: Kind,
    /// Half period of `cosine`, in epochs.
    pub t_max: usize,
    /// Period of `step`, in epochs.
    pub step_size: usize,
    /// Epochs at which `multistep` falls.
    pub milestones: Vec<usize>,
    /// Factor of `step`, `multistep` and `plateau`.
    pub gamma: f64,
    /// Epochs without improvement that `plateau` bears.
    pub patience: usize,
    /// Share of all steps in which `triangle` rises.
    pub warmup: f64,
    /// The lowest rate of `cosine`, `triangle` and `plateau`.
    pub min_lr: f64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            kind: Kind::Cosine,
            t_max: 100,
            step_size: 30,
            milestones: vec![100, 150],
            gamma: 0.1,
            patience: 10,
            warmup: 0.2,
            min_lr: 0.0,
        }
    }
}

/// What `plateau` remembers between epochs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlateauState {
    /// Factor on the base rate so far.
    pub factor: f64,
    /// Lowest mean training loss so far; absent before the first epoch.
    pub best: Option<f64>,
    /// Epochs since the last improvement.
    pub bad_epochs: usize,
}

impl Default for PlateauState {
    fn default() -> Self {
        Self {
            factor: 1.0,
            best: None,
            bad_epochs: 0,
        }
    }
}

impl PlateauState {
    /// Takes note of an epoch's mean training loss.
    pub fn record(&mut self, schedule: &Schedule, loss: f64) {
        const THRESHOLD: f64 = 1e-4;
        if self.best.is_none_or(|best| loss < best * (1.0 - THRESHOLD)) {
            self.best = Some(loss);
            self.bad_epochs = 0;
        } else {
            self.bad_epochs += 1;
        }
        if self.bad_epochs > schedule.patience {
            self.factor *= schedule.gamma;
            self.bad_epochs = 0;
        }
    }
}

impl Schedule {
    /// The rate of step `step` (of `steps`) in epoch `epoch` (of `epochs`), both counted from 0.
    pub fn rate(
        &self,
        lr: f64,
        (epoch, epochs): (usize, usize),
        (step, steps): (usize, usize),
        plateau: &PlateauState,
    ) -> f64 {
        match self.kind {
            Kind::Constant => lr,
            Kind::Step => lr * self.gamma.powi((epoch / self.step_size.max(1)) as i32),
            Kind::Multistep => {
                lr * self
                    .gamma
                    .powi(self.milestones.iter().filter(|&&m| epoch >= m).count() as i32)
            }
            Kind::Cosine => {
                let phase = std::f64::consts::PI * epoch as f64 / self.t_max.max(1) as f64;
                self.min_lr + (lr - self.min_lr) * (1.0 + phase.cos()) / 2.0
            }
            Kind::Triangle => {
                let total = (epochs * steps).max(1) as f64;
                let done = ((epoch * steps + step) as f64 + 1.0) / total;
                if done < self.warmup {
                    lr * done / self.warmup
                } else {
                    self.min_lr + (lr - self.min_lr) * (1.0 - done) / (1.0 - self.warmup).max(1e-9)
                }
            }
            Kind::Plateau => (lr * plateau.factor).max(self.min_lr),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(schedule: &Schedule, epoch: usize) -> f64 {
        schedule.rate(0.01, (epoch, 100), (0, 10), &PlateauState::default())
    }

    #[test]
    fn cosine_follows_pytorch() {
        let s = Schedule::default();
        assert!((rate(&s, 0) - 0.01).abs() < 1e-12);
        // GTSRB trains 50 epochs with t_max 100 and so ends at half the rate.
        assert!((rate(&s, 50) - 0.005).abs() < 1e-12);
        assert!((rate(&s, 99) - 2.467_198_171_342e-6).abs() < 1e-12);
    }

    #[test]
    fn steps_fall_at_their_epochs() {
        let s = Schedule {
            kind: Kind::Multistep,
            milestones: vec![3, 5],
            ..Schedule::default()
        };
        let rates: Vec<f64> = (0..7).map(|e| (rate(&s, e) * 1e6).round() / 1e6).collect();
        assert_eq!(rates, [0.01, 0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001]);
        let s = Schedule {
            kind: Kind::Step,
            step_size: 2,
            ..Schedule::default()
        };
        let rates: Vec<f64> = (0..4).map(|e| (rate(&s, e) * 1e6).round() / 1e6).collect();
        assert_eq!(rates, [0.01, 0.01, 0.001, 0.001]);
    }

    #[test]
    fn triangle_rises_and_falls_to_the_lowest_rate() {
        let s = Schedule {
            kind: Kind::Triangle,
            warmup: 0.25,
            ..Schedule::default()
        };
        let all: Vec<f64> = (0..8)
            .map(|i| s.rate(1.0, (i / 4, 2), (i % 4, 4), &PlateauState::default()))
            .collect();
        let peak = all.iter().copied().fold(0.0, f64::max);
        assert!(
            (peak - 1.0).abs() < 1e-12 && all[7].abs() < 1e-12,
            "{all:?}"
        );
        assert!(all[0] < all[1] && all[1] > all[2]);
    }

    #[test]
    fn plateau_waits_for_its_patience() {
        let s = Schedule {
            kind: Kind::Plateau,
            patience: 2,
            ..Schedule::default()
        };
        let mut state = PlateauState::default();
        for loss in [1.0, 0.9, 0.95, 0.95] {
            state.record(&s, loss);
        }
        assert!((state.factor - 1.0).abs() < 1e-12);
        state.record(&s, 0.9);
        assert!((state.factor - 0.1).abs() < 1e-12 && state.bad_epochs == 0);
    }

    /// A loss must fall by more than 1e-4 of the best one, as in PyTorch.
    #[test]
    fn plateau_takes_no_small_fall_for_an_improvement() {
        let s = Schedule {
            kind: Kind::Plateau,
            patience: 0,
            ..Schedule::default()
        };
        let factor = |second: f64| {
            let mut state = PlateauState::default();
            state.record(&s, 2.0);
            state.record(&s, second);
            state.factor
        };
        for (second, expect) in [(2.0, 0.1), (1.999_85, 0.1), (1.999_75, 1.0), (2.1, 0.1)] {
            assert!((factor(second) - expect).abs() < 1e-12, "{second}");
        }
        let lowest = Schedule { min_lr: 0.5, ..s };
        let state = PlateauState {
            factor: 0.1,
            ..PlateauState::default()
        };
        assert!((lowest.rate(1.0, (3, 9), (0, 1), &state) - 0.5).abs() < 1e-12);
    }
}
