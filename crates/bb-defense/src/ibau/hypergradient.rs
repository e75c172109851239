//! The gradient of an outer loss through a perturbation that depends on the parameters, by fixed-point iteration.
//!
//! The perturbation `d` lowers an inner loss `G(d, w)` and so is a fixed point of `phi(d, w) = d - rate dG/dd`. By the
//! implicit function theorem the outer loss `F(d, w)` changes with `w` by
//! `dF/dw + (dphi/dw)^T v`, where `v` solves `v = (dphi/dd)^T v + dF/dd`; a few iterations from `v = 0` give
//! `v_K = sum over j < K of ((dphi/dd)^T)^j dF/dd` (Grazzi et al., ICML 2020, which the authors of i-BAU use).
//!
//! Both products are derivatives of gradients of `G` along `v`, `(dphi/dd)^T v = v - rate H v` with the Hessian `H` by
//! `d`, and `(dphi/dw)^T v = -rate d/dw <dG/dd, v>`, and are taken as central differences of gradients at `d ± h v`. So
//! nothing here differentiates twice, and nothing knows a network.

use serde::{Deserialize, Serialize};

/// Table `[hypergradient]`: how many terms of the series there are, and how they are computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HypergradientConfig {
    /// Rate of the gradient step whose fixed point the perturbation is, above 0.
    pub rate: f64,
    /// Terms of the series, `K`; 0 takes the perturbation for fixed.
    pub terms: usize,
    /// Leave the remaining terms out once one changes the sum by less than this, in L2 norm.
    pub tolerance: f64,
    /// By how much the perturbation moves for a central difference: the root of the mean square over its values, above 0.
    pub step: f64,
}

/// An inner and an outer loss of a perturbation, at given parameters.
pub trait Bilevel {
    /// A gradient by the parameters.
    type Gradient;

    /// The outer loss's gradients by the perturbation and by the parameters.
    fn outer(&mut self, perturbation: &[f64]) -> (Vec<f64>, Self::Gradient);

    /// The inner loss's gradient by the perturbation.
    fn inner_by_perturbation(&mut self, perturbation: &[f64]) -> Vec<f64>;

    /// The inner loss's gradient by the parameters.
    fn inner_by_parameters(&mut self, perturbation: &[f64]) -> Self::Gradient;

    /// `sum += factor * other`.
    fn add(sum: &mut Self::Gradient, factor: f64, other: &Self::Gradient);
}

/// The gradient of the outer loss by the parameters, through the perturbation.
pub fn hypergradient<B: Bilevel>(
    problem: &mut B,
    perturbation: &[f64],
    cfg: &HypergradientConfig,
) -> B::Gradient {
    let (outer, mut gradient) = problem.outer(perturbation);
    let v = series(problem, perturbation, &outer, cfg);
    if let Some(ends) = Ends::new(perturbation, &v, cfg.step) {
        // The two are large and nearly alike, so their difference is taken first.
        let mut change = problem.inner_by_parameters(&ends.ahead);
        let behind = problem.inner_by_parameters(&ends.behind);
        B::add(&mut change, -1.0, &behind);
        B::add(&mut gradient, -cfg.rate / ends.between, &change);
    }
    gradient
}

/// `v_K`, the first `terms` terms of the series that `outer` begins.
pub fn series<B: Bilevel>(
    problem: &mut B,
    perturbation: &[f64],
    outer: &[f64],
    cfg: &HypergradientConfig,
) -> Vec<f64> {
    fixed_point(outer, cfg.terms, cfg.tolerance, |v| {
        let Some(ends) = Ends::new(perturbation, v, cfg.step) else {
            return v.to_vec();
        };
        let ahead = problem.inner_by_perturbation(&ends.ahead);
        let behind = problem.inner_by_perturbation(&ends.behind);
        let factor = cfg.rate / ends.between;
        let pairs = v.iter().zip(ahead.iter().zip(&behind));
        pairs
            .map(|(v, (ahead, behind))| v - factor * (ahead - behind))
            .collect()
    })
}

/// `v_K` of `v_0 = 0` and `v_k = pull(v_{k-1}) + outer`, with `pull` linear, so that the first term needs no call.
pub fn fixed_point(
    outer: &[f64],
    terms: usize,
    tolerance: f64,
    mut pull: impl FnMut(&[f64]) -> Vec<f64>,
) -> Vec<f64> {
    let mut v = vec![0.0; outer.len()];
    for term in 0..terms {
        let mut next = if term == 0 {
            vec![0.0; outer.len()]
        } else {
            pull(&v)
        };
        for (next, outer) in next.iter_mut().zip(outer) {
            *next += outer;
        }
        let change: f64 = v.iter().zip(&next).map(|(a, b)| (a - b).powi(2)).sum();
        v = next;
        if change.sqrt() < tolerance {
            break;
        }
    }
    v
}

/// Two points on both sides of another one, for a central difference.
struct Ends {
    ahead: Vec<f64>,
    behind: Vec<f64>,
    /// How many times the direction lies between them.
    between: f64,
}

impl Ends {
    /// The points `at ± h v` whose values differ from those of `at` by `step` in the root of their mean square; `None`
    /// where `v` is 0 and has no direction.
    fn new(at: &[f64], v: &[f64], step: f64) -> Option<Self> {
        let square = v.iter().map(|v| v * v).sum::<f64>() / v.len() as f64;
        if square == 0.0 {
            return None;
        }
        let h = step / square.sqrt();
        let moved = |h: f64| at.iter().zip(v).map(|(at, v)| at + h * v).collect();
        Some(Self {
            ahead: moved(h),
            behind: moved(-h),
            between: 2.0 * h,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Matrix = Vec<Vec<f64>>;

    fn times(matrix: &Matrix, v: &[f64]) -> Vec<f64> {
        let dot = |row: &Vec<f64>| row.iter().zip(v).map(|(a, b)| a * b).sum();
        matrix.iter().map(dot).collect()
    }

    /// On `d'Hd/2` the iteration sums `(I - rate H)^j g` (defenses page, check 11).
    #[test]
    fn a_quadratic_inner_loss_gives_the_series() {
        let h = vec![
            vec![2.0, 0.5, 0.0],
            vec![0.5, 1.0, -0.25],
            vec![0.0, -0.25, 3.0],
        ];
        let g = [1.0, -2.0, 0.5];
        let rate = 0.1;
        let pull = |v: &[f64]| -> Vec<f64> {
            let hv = times(&h, v);
            v.iter().zip(&hv).map(|(v, hv)| v - rate * hv).collect()
        };
        for terms in 0..8 {
            let (mut power, mut wanted) = (g.to_vec(), vec![0.0; 3]);
            for _ in 0..terms {
                for (wanted, power) in wanted.iter_mut().zip(&power) {
                    *wanted += power;
                }
                power = pull(&power);
            }
            let mut calls = 0;
            let found = fixed_point(&g, terms, 1e-10, |v| {
                calls += 1;
                pull(v)
            });
            for (found, wanted) in found.iter().zip(&wanted) {
                assert!((found - wanted).abs() < 1e-12, "{terms} terms");
            }
            assert_eq!(calls, terms.saturating_sub(1));
        }
        // Many terms solve `rate H v = g`.
        let v = fixed_point(&g, 10_000, 1e-13, pull);
        for (hv, g) in times(&h, &v).iter().zip(&g) {
            assert!((rate * hv - g).abs() < 1e-9);
        }
    }

    #[test]
    fn the_iteration_ends_when_nothing_changes() {
        let mut calls = 0;
        let v = fixed_point(&[1.0, 2.0], 50, 1e-3, |v| {
            calls += 1;
            v.iter().map(|v| 0.1 * v).collect()
        });
        // Terms of sizes 2.2, 0.22, ..., of which the fifth is below a thousandth.
        assert_eq!(calls, 4);
        assert!((v[0] - 1.1111).abs() < 1e-9, "{}", v[0]);
        assert_eq!(
            fixed_point(&[0.0], 5, 1e-10, |_| panic!("no direction")),
            [0.0]
        );
    }

    /// `G = d'Ad/2 + sum over i of c_i sin(d_i) w_i + (b'd)^2 (b'w) / 2`, `F = sum of cos(d_i) w_i^2`: smooth, with a
    /// Hessian by `d` and a mixed derivative that depend on both.
    struct Smooth {
        a: Matrix,
        b: Vec<f64>,
        c: Vec<f64>,
        w: Vec<f64>,
    }

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    impl Bilevel for Smooth {
        type Gradient = Vec<f64>;

        fn outer(&mut self, d: &[f64]) -> (Vec<f64>, Vec<f64>) {
            let pairs = || d.iter().zip(&self.w);
            (
                pairs().map(|(d, w)| -d.sin() * w * w).collect(),
                pairs().map(|(d, w)| 2.0 * d.cos() * w).collect(),
            )
        }

        fn inner_by_perturbation(&mut self, d: &[f64]) -> Vec<f64> {
            let mut gradient = times(&self.a, d);
            let (bd, bw) = (dot(&self.b, d), dot(&self.b, &self.w));
            for (i, gradient) in gradient.iter_mut().enumerate() {
                *gradient += self.c[i] * d[i].cos() * self.w[i] + bd * bw * self.b[i];
            }
            gradient
        }

        fn inner_by_parameters(&mut self, d: &[f64]) -> Vec<f64> {
            let bd = dot(&self.b, d);
            let of = |i: usize| self.c[i] * d[i].sin() + bd * bd * self.b[i] / 2.0;
            (0..d.len()).map(of).collect()
        }

        fn add(sum: &mut Vec<f64>, factor: f64, other: &Vec<f64>) {
            for (sum, other) in sum.iter_mut().zip(other) {
                *sum += factor * other;
            }
        }
    }

    impl Smooth {
        /// The Hessian of the inner loss by the perturbation, worked out by hand.
        fn hessian(&self, d: &[f64]) -> Matrix {
            let bw = dot(&self.b, &self.w);
            let mut hessian = self.a.clone();
            for (i, row) in hessian.iter_mut().enumerate() {
                for (j, value) in row.iter_mut().enumerate() {
                    *value += bw * self.b[i] * self.b[j];
                }
                row[i] -= self.c[i] * d[i].sin() * self.w[i];
            }
            hessian
        }

        /// `d/dw <dG/dd, v>`, worked out by hand.
        fn mixed(&self, d: &[f64], v: &[f64]) -> Vec<f64> {
            let both = dot(&self.b, d) * dot(&self.b, v);
            let of = |i: usize| self.c[i] * d[i].cos() * v[i] + both * self.b[i];
            (0..d.len()).map(of).collect()
        }
    }

    proptest! {
        #[test]
        fn the_hypergradient_is_the_one_worked_out_by_hand(
            values in prop::collection::vec(-1.0f64..1.0, 16), off in -0.5f64..0.5, terms in 0usize..7,
        ) {
            let mut part = values.chunks_exact(4).map(<[f64]>::to_vec);
            let mut next = || part.next().expect("four parts");
            let (b, c, w, d) = (next(), next(), next(), next());
            let a = (0..4)
                .map(|i| (0..4).map(|j| if i == j { 2.0 } else { off }).collect())
                .collect();
            let mut problem = Smooth { a, b, c, w };
            let cfg = HypergradientConfig { rate: 0.1, terms, tolerance: 1e-10, step: 1e-4 };
            let found = hypergradient(&mut problem, &d, &cfg);

            let hessian = problem.hessian(&d);
            let (outer, direct) = problem.outer(&d);
            let v = fixed_point(&outer, terms, 1e-10, |v| {
                v.iter().zip(times(&hessian, v)).map(|(v, hv)| v - cfg.rate * hv).collect()
            });
            let mixed = problem.mixed(&d, &v);
            for ((found, direct), mixed) in found.iter().zip(direct).zip(mixed) {
                let wanted = direct - cfg.rate * mixed;
                prop_assert!((found - wanted).abs() < 1e-6, "{found} against {wanted}");
            }
        }
    }

    /// With enough terms, at a fixed point, it is the slope of the outer loss along the path of inner minima.
    #[test]
    fn at_the_inner_minimum_it_is_the_slope_of_the_whole() {
        let problem = |w: Vec<f64>| Smooth {
            a: vec![vec![3.0, 0.5], vec![0.5, 2.0]],
            b: vec![0.4, -0.3],
            c: vec![0.8, 0.6],
            w,
        };
        let minimum = |w: &[f64]| {
            let mut problem = problem(w.to_vec());
            let mut d = vec![0.1, -0.2];
            for _ in 0..2000 {
                let gradient = problem.inner_by_perturbation(&d);
                for (d, gradient) in d.iter_mut().zip(gradient) {
                    *d -= 0.1 * gradient;
                }
            }
            d
        };
        let whole = |w: &[f64]| {
            let d = minimum(w);
            d.iter().zip(w).map(|(d, w)| d.cos() * w * w).sum::<f64>()
        };
        let w = vec![0.9, -1.1];
        let cfg = HypergradientConfig {
            rate: 0.1,
            terms: 500,
            tolerance: 1e-12,
            step: 1e-4,
        };
        let found = hypergradient(&mut problem(w.clone()), &minimum(&w), &cfg);
        for i in 0..w.len() {
            let at = |h: f64| {
                let mut moved = w.clone();
                moved[i] += h;
                whole(&moved)
            };
            let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((found[i] - slope).abs() < 1e-6, "{} {slope}", found[i]);
        }
        let (_, direct) = problem(w.clone()).outer(&minimum(&w));
        assert!(
            (found[0] - direct[0]).abs() > 1e-2,
            "the path has to matter"
        );
    }
}
