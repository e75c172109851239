//! Each form against plain loops in `f64`.

use super::*;
use crate::kernels::precision::{narrow, per_word, supported};
use proptest::prelude::*;

/// Reproducible values in -0.5..0.5.
fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut stream = bb_core::rng::stream(seed, "convolution tests", 0, len as u64);
    (0..len)
        .map(|_| bb_core::rng::unit_f32(&mut stream) - 0.5)
        .collect()
}

/// The root mean square of the differences may be `tolerance` times that of what is expected, one difference eight
/// times as much. Where terms cancel, a tenth of the root mean square of the `terms` (sums of absolute values) counts.
fn assert_near(
    name: &str,
    s: &ConvShape,
    found: &[f32],
    (expected, terms): (&[f64], &[f64]),
    tolerance: f64,
) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let rms = |v: &mut dyn Iterator<Item = f64>| {
        (v.map(|v| v * v).sum::<f64>() / expected.len() as f64).sqrt()
    };
    let size = rms(&mut expected.iter().copied());
    let size = size.max(0.1 * rms(&mut terms.iter().copied())) + 1e-30;
    let differences = || found.iter().zip(expected).map(|(f, e)| f64::from(*f) - e);
    let typical = rms(&mut differences()) / size;
    let worst = differences().fold(0f64, |w, d| if d.abs() <= w { w } else { d.abs() }) / size;
    assert!(
        typical <= tolerance && worst <= 8.0 * tolerance,
        "{name} of {s:?} differs by {typical:e} of its size, at most by {worst:e}; allowed {tolerance:e}"
    );
}

/// Output, input gradient and weight gradient by the definition.
fn reference(s: &ConvShape, x: &[f64], w: &[f32], dy: &[f32]) -> [Vec<f64>; 3] {
    let (oh, ow) = (s.oh(), s.ow());
    let mut y = vec![0f64; s.output_len()];
    let mut dx = vec![0f64; s.input_len()];
    let mut dw = vec![0f64; s.weight_len()];
    for n in 0..s.n {
        for (i, j) in (0..oh).flat_map(|i| (0..ow).map(move |j| (i, j))) {
            for (ky, kx) in (0..s.k).flat_map(|a| (0..s.k).map(move |b| (a, b))) {
                let (Some(r), Some(c)) = (
                    (i * s.stride + ky).checked_sub(s.pad).filter(|r| *r < s.h),
                    (j * s.stride + kx).checked_sub(s.pad).filter(|c| *c < s.w),
                ) else {
                    continue;
                };
                for ci in 0..s.cin {
                    for co in 0..s.cout {
                        let xi = ((n * s.h + r) * s.w + c) * s.cin + ci;
                        let yi = ((n * oh + i) * ow + j) * s.cout + co;
                        let wi = ((ky * s.k + kx) * s.cin + ci) * s.cout + co;
                        y[yi] += x[xi] * f64::from(w[wi]);
                        dx[xi] += f64::from(dy[yi]) * f64::from(w[wi]);
                        dw[wi] += f64::from(dy[yi]) * x[xi];
                    }
                }
            }
        }
    }
    [y, dx, dw]
}

fn sum(a: &[f64], b: &[f32]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + f64::from(*b)).collect()
}

type InputGradient = fn(&ConvShape, Precision, &[f32], &[f32], Add<'_>, &mut [f32]);

/// The three functions of one form.
struct Form {
    forward: fn(&ConvShape, Precision, Source<'_>, &[f32], Add<'_>, &mut [f32]),
    input_gradient: InputGradient,
    weight_gradient: fn(&ConvShape, Precision, Source<'_>, &[f32], &mut [f32]),
    /// In `f32` and in `bf16`, where the reference has rounded factors as well if `rounds_factors`.
    tolerance: [f64; 2],
    rounds_factors: bool,
}

const DIRECT: Form = Form {
    forward: direct::forward,
    input_gradient: direct::input_gradient,
    weight_gradient: weight::gradient,
    tolerance: [1e-6, 1e-6],
    rounds_factors: true,
};

const WINOGRAD: Form = Form {
    forward: |s, _, x, w, add, y| winograd::forward(s, x, w, add, y),
    input_gradient: winograd::input_gradient,
    weight_gradient: winograd::weight::gradient,
    // In bf16 it is the transformed factors of the gradients that are rounded: 1 %, more in images smaller than a tile.
    tolerance: [5e-6, 0.06],
    rounds_factors: false,
};

/// With every width of vectors in `f32`, and in `bf16`.
fn check(form: &Form, s: ConvShape, seed: u64) {
    for level in narrow::LEVELS {
        let _limit = narrow::set(level);
        check_precision(form, Precision::F32, s, seed);
    }
    let _limit = narrow::set(0);
    if supported(Precision::Bf16).is_ok() {
        check_precision(form, Precision::Bf16, s, seed);
    } else {
        eprintln!("skipped bf16: this processor lacks it");
    }
}

fn check_precision(form: &Form, precision: Precision, s: ConvShape, seed: u64) {
    let rounded = |v: f32| match precision {
        Precision::Bf16 if form.rounds_factors => half::bf16::from_f32(v).to_f32(),
        _ => v,
    };
    let round_all = |v: &[f32]| v.iter().map(|v| rounded(*v)).collect::<Vec<f32>>();
    let (raw, w, dy) = (
        random(s.input_len(), seed),
        random(s.weight_len(), seed + 1),
        random(s.output_len(), seed + 2),
    );
    let (scale, shift) = (random(s.cin, seed + 5), random(s.cin, seed + 6));
    let affine = Affine {
        scale: &scale,
        shift: &shift,
        relu: true,
    };
    for affine in [None, Some(affine)] {
        let source = Source { data: &raw, affine };
        let x: Vec<f64> = raw
            .iter()
            .enumerate()
            .map(|(i, v)| {
                let c = i % s.cin;
                let v = affine.map_or(*v, |a| v.mul_add(a.scale[c], a.shift[c]).max(0.0));
                f64::from(rounded(v))
            })
            .collect();
        let [y, dx, dw] = reference(&s, &x, &round_all(&w), &round_all(&dy));
        let size = |v: &[f32]| v.iter().map(|v| v.abs()).collect::<Vec<f32>>();
        let x_size: Vec<f64> = x.iter().map(|v| v.abs()).collect();
        let [y_terms, dx_terms, dw_terms] = reference(&s, &x_size, &size(&w), &size(&dy));
        let near = |name, found: &[f32], expected: (&[f64], &[f64])| {
            let tolerance = form.tolerance[per_word(precision) - 1];
            assert_near(name, &s, found, expected, tolerance);
        };
        let mut found = vec![f32::NAN; s.output_len()];
        (form.forward)(&s, precision, source, &w, Add::Nothing, &mut found);
        near("y", &found, (&y, &y_terms));
        let mut found = vec![f32::NAN; s.weight_len()];
        (form.weight_gradient)(&s, precision, source, &dy, &mut found);
        near("dw", &found, (&dw, &dw_terms));
        let mut found = vec![f32::NAN; s.input_len()];
        (form.input_gradient)(&s, precision, &dy, &w, Add::Nothing, &mut found);
        near("dx", &found, (&dx, &dx_terms));

        // What is added: another tensor, or what was there.
        let other = random(s.output_len(), seed + 3);
        let mut found = vec![f32::NAN; s.output_len()];
        (form.forward)(&s, precision, source, &w, Add::Other(&other), &mut found);
        near("y + other", &found, (&sum(&y, &other), &y_terms));
        let mut found = random(s.input_len(), seed + 4);
        let expected = sum(&dx, &found);
        (form.input_gradient)(&s, precision, &dy, &w, Add::Destination, &mut found);
        near("dx + destination", &found, (&expected, &dx_terms));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn direct_form_is_the_definition(
        n in 1usize..4, h in 1usize..12, w in 1usize..12, cin in 1usize..24, cout in 1usize..40,
        k in 1usize..6, stride in 1usize..4, pad in 0usize..3, seed in 0u64..1000,
    ) {
        let s = ConvShape { n, h, w, cin, cout, k, stride, pad: pad.min(k - 1) };
        prop_assume!(s.is_valid());
        check(&DIRECT, s, seed);
    }

    #[test]
    fn winograds_form_is_the_definition(
        n in 1usize..4, h in 1usize..12, w in 1usize..12, cin in 1usize..4, cout in 1usize..4,
        pad in 0usize..3, seed in 0u64..1000,
    ) {
        let s = ConvShape { n, h, w, cin: cin * 16, cout: cout * 16, k: 3, stride: 1, pad };
        prop_assume!(s.is_valid());
        check(&WINOGRAD, s, seed);
    }
}

#[test]
fn shapes_of_the_models() {
    let shape = |h, cin, cout, k, stride, pad| ConvShape {
        n: 3,
        h,
        w: h,
        cin,
        cout,
        k,
        stride,
        pad,
    };
    for s in [
        shape(32, 3, 16, 3, 1, 1),
        shape(8, 32, 64, 3, 2, 1),
        shape(8, 32, 64, 1, 2, 0),
        shape(17, 3, 8, 7, 2, 3),
        shape(1, 5, 33, 1, 1, 0),
    ] {
        check(&DIRECT, s, 7);
    }
    // The last has so many weights that it is multiplied block by block.
    for s in [
        shape(16, 16, 16, 3, 1, 1),
        shape(8, 64, 64, 3, 1, 1),
        shape(4, 64, 96, 3, 1, 1),
        shape(3, 256, 272, 3, 1, 1),
    ] {
        check(&WINOGRAD, s, 7);
    }
}

#[test]
fn small_problems_keep_the_direct_form() {
    let large = ConvShape {
        n: 128,
        h: 8,
        w: 8,
        cin: 64,
        cout: 64,
        k: 3,
        stride: 1,
        pad: 1,
    };
    assert!(winograd::serves(&large));
    assert!(!winograd::serves(&ConvShape { n: 1, ..large }));
    assert!(!winograd::serves(&ConvShape { stride: 2, ..large }));
    assert!(!winograd::serves(&ConvShape { cin: 24, ..large }));
}
