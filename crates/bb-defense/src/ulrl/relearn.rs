//! Stage 3: new rows for the suspicious classes, and training that keeps them from becoming what they were.

use bb_core::rng;
use bb_nn::data::Input;
use bb_nn::kernels::loss::Loss;
use bb_nn::optim::Sgd;
use bb_nn::{Flat, Mode, Net};

use super::config::RelearnConfig;
use crate::finetuning::Stepper;
use crate::parts::Head;

/// The rows of some classes before they were drawn anew.
#[derive(Clone, Debug)]
pub struct Rows {
    head: Head,
    classes: Vec<usize>,
    original: Vec<Vec<f32>>,
}

/// Half the width of the interval that new weights are drawn from.
pub fn bound(gain: f64, features: usize) -> f64 {
    (gain / features as f64).sqrt()
}

impl Rows {
    /// The rows of `classes` as they are in `net`.
    pub fn of(net: &Net, head: Head, classes: &[usize]) -> Self {
        let weight = net.params().to_plain(head.weight);
        let row = |&class: &usize| weight[class * head.features..][..head.features].to_vec();
        Self {
            head,
            classes: classes.to_vec(),
            original: classes.iter().map(row).collect(),
        }
    }

    /// New rows, uniform within the bound of `gain`, from the stream of each class.
    pub fn draw(&self, gain: f64, seed: u64) -> Vec<Vec<f32>> {
        let bound = bound(gain, self.head.features);
        let row = |&class: &usize| {
            let mut stream = rng::stream(seed, "ulrl/rows", 0, class as u64);
            (0..self.head.features)
                .map(|_| ((2.0 * rng::unit_f64(&mut stream) - 1.0) * bound) as f32)
                .collect()
        };
        self.classes.iter().map(row).collect()
    }

    /// Puts rows in the place of these, with biases of 0.
    pub fn replace(&self, net: &mut Net, rows: &[Vec<f32>]) {
        let mut weight = net.params().to_plain(self.head.weight);
        let mut bias = net.params().to_plain(self.head.bias);
        for (&class, row) in self.classes.iter().zip(rows) {
            weight[class * self.head.features..][..self.head.features].copy_from_slice(row);
            bias[class] = 0.0;
        }
        net.params_mut().set_plain(self.head.weight, &weight);
        net.params_mut().set_plain(self.head.bias, &bias);
    }

    /// The sum of the rows' cosines with what they were; its gradient times `alpha` is added to `grads`.
    pub fn similarity(&self, params: &Flat, alpha: f64, grads: &mut Flat) -> f64 {
        if self.classes.is_empty() {
            return 0.0;
        }
        let features = self.head.features;
        let weight = params.to_plain(self.head.weight);
        let mut gradient = grads.to_plain(self.head.weight);
        let mut sum = 0.0;
        for (&class, original) in self.classes.iter().zip(&self.original) {
            let row = &weight[class * features..][..features];
            let (cosine, slope) = cosine(row, original);
            sum += cosine;
            let gradient = &mut gradient[class * features..][..features];
            for (gradient, slope) in gradient.iter_mut().zip(slope) {
                *gradient += (alpha * slope) as f32;
            }
        }
        grads.set_plain(self.head.weight, &gradient);
        sum
    }
}

/// The cosine of `row` with `fixed`, and its gradient by `row`.
///
/// As in PyTorch the product of the norms is at least 1e-8; below that it is a constant.
fn cosine(row: &[f32], fixed: &[f32]) -> (f64, Vec<f64>) {
    const LEAST: f64 = 1e-8;
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum()
    };
    let (both, own, other) = (dot(row, fixed), dot(row, row), dot(fixed, fixed));
    let norms = (own * other).sqrt();
    let product = norms.max(LEAST);
    let cosine = both / product;
    let pull = if norms > LEAST { cosine / own } else { 0.0 };
    let slope = row
        .iter()
        .zip(fixed)
        .map(|(w, f)| f64::from(*f) / product - pull * f64::from(*w))
        .collect();
    (cosine, slope)
}

/// Steps of SGD on the cross-entropy and the rows' similarity.
#[derive(Debug)]
pub struct Relearner<'a> {
    cfg: &'a RelearnConfig,
    rows: &'a Rows,
    sgd: Sgd,
    grads: Flat,
}

impl<'a> Relearner<'a> {
    /// An optimiser at rest for `net`.
    pub fn new(net: &Net, cfg: &'a RelearnConfig, rows: &'a Rows) -> Self {
        Self {
            cfg,
            rows,
            sgd: Sgd::new(net.params(), cfg.momentum as f32, 0.0, false),
            grads: net.zeros(),
        }
    }

    /// The gradient of the last step.
    pub fn gradient(&self) -> &Flat {
        &self.grads
    }
}

impl Stepper for Relearner<'_> {
    fn step(&mut self, net: &mut Net, input: &Input, labels: &[u32], lr: f32) -> Loss {
        let mut loss = net.loss_grad(input, labels, Mode::Train, &mut self.grads);
        let alpha = self.cfg.alpha;
        let similarity = self.rows.similarity(net.params(), alpha, &mut self.grads);
        loss.mean += (alpha * similarity) as f32;
        self.sgd.step(net.params_mut(), &self.grads, lr);
        if self.cfg.refresh_bn {
            net.forward(input, Mode::Train);
        }
        loss
    }

    fn sgd(&self) -> &Sgd {
        &self.sgd
    }

    fn sgd_mut(&mut self) -> &mut Sgd {
        &mut self.sgd
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_bound_is_that_of_the_fan_in() {
        assert!((bound(2.0, 512) - 0.0625).abs() < 1e-12);
    }

    proptest! {
        /// The gradient is what small changes of the row do to the cosine.
        #[test]
        fn the_gradient_of_the_cosine_is_its_slope(
            row in prop::collection::vec(-1.0f32..1.0, 5), fixed in prop::collection::vec(-1.0f32..1.0, 5),
        ) {
            let length = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
            prop_assume!(length(&row) > 0.3 && length(&fixed) > 0.3);
            let (value, slope) = cosine(&row, &fixed);
            prop_assert!((-1.0 - 1e-9..=1.0 + 1e-9).contains(&value));
            for i in 0..row.len() {
                const STEP: f32 = 1.0 / 1024.0;
                let at = |change: f32| {
                    let mut moved = row.clone();
                    moved[i] += change;
                    (cosine(&moved, &fixed).0, f64::from(moved[i]))
                };
                let ((above, high), (below, low)) = (at(STEP), at(-STEP));
                let found = (above - below) / (high - low);
                prop_assert!((found - slope[i]).abs() < 1e-3, "{found} against {}", slope[i]);
            }
        }
    }
}
