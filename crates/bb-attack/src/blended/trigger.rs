//! The Blended trigger on 8-bit images, and the picture that is blended in when the user gives none.

use crate::picture::Picture;

/// A trigger picture in the precision that the bench keeps it in: `255 * (t / 255)` in `f32`.
pub fn widen(trigger: &[u8]) -> Vec<f32> {
    trigger
        .iter()
        .map(|&t| 255.0 * (f32::from(t) / 255.0))
        .collect()
}

/// Blends the trigger into an image of the same size: `trunc(clip((1 - alpha) * image + alpha * trigger, 0, 255))`.
///
/// Precision as in the bench, where it decides one value in forty: the product with the trigger is rounded to `f32`,
/// the rest is `f64`. Truncation instead of rounding, too: the result is half a grey level darker on average than the
/// exact blend.
pub fn apply(image: &mut [u8], trigger: &[f32], alpha: f64) {
    debug_assert_eq!(image.len(), trigger.len());
    let weight = alpha as f32;
    for (v, &t) in image.iter_mut().zip(trigger) {
        let blend = (1.0 - alpha) * f64::from(*v) + f64::from(weight * t);
        *v = blend.clamp(0.0, 255.0) as u8;
    }
}

/// Side of [`picture`] in pixels.
const SIDE: i64 = 256;
/// One in the fixed-point arithmetic of [`picture`].
const ONE: i64 = 1 << 16;

/// The built-in trigger picture: a landscape of 256 x 256 pixels, drawn by rule.
///
/// Natural pictures are mostly low frequencies with a few hard edges, and that is what this one has: a sky with clouds
/// and a sun, snowy mountains, a meadow with flowers, a tree and a house. Integer arithmetic only, so that the same
/// picture comes out on every machine.
pub fn picture() -> Picture {
    let mut pixels = Vec::with_capacity((SIDE * SIDE * 3) as usize);
    for r in 0..SIDE {
        for c in 0..SIDE {
            pixels.extend(colour(r, c).map(|v| v.clamp(0, 255) as u8));
        }
    }
    Picture::new(SIDE as usize, SIDE as usize, pixels)
}

/// Colour of one pixel of the landscape: the nearest thing wins.
fn colour(r: i64, c: i64) -> [i64; 3] {
    let light = fractal(c, r, 4, 4, 9);
    if let Some(house) = house(r, c) {
        return shade(house, light, 12);
    }
    // Tree: an irregular crown over a trunk.
    let ragged = (fractal(c, r, 4, 3, 5) - ONE / 2) / 110;
    if distance2(r - 128, c - 62) < 44 * 44 + 6 * ragged {
        return shade([26, 92, 38], fractal(c, r, 3, 3, 6), 90);
    }
    if (56..68).contains(&c) && (160..222).contains(&r) {
        return shade([92, 58, 34], light, 40);
    }
    let meadow = 178 + (fractal(c, 0, 6, 2, 3) - ONE / 2) / 2200;
    if r >= meadow {
        if let Some(flower) = flower(r, c) {
            return flower;
        }
        let near = (r - meadow) * ONE / (SIDE - meadow);
        return shade(
            mix([150, 190, 84], [58, 120, 40], near),
            fractal(c, r, 3, 3, 4),
            60,
        );
    }
    let ridge = 104 + (fractal(c, 0, 6, 4, 1) - ONE / 2) / 560;
    if r >= ridge {
        let snow = r - ridge < 26 + (fractal(c, r, 3, 2, 2) - ONE / 2) / 1600;
        let rock = if snow {
            [236, 240, 250]
        } else {
            [104, 108, 140]
        };
        return shade(
            rock,
            fractal(c + r, r - c, 4, 4, 2),
            if snow { 30 } else { 80 },
        );
    }
    sky(r, c)
}

fn sky(r: i64, c: i64) -> [i64; 3] {
    let from_sun = distance2(r - 46, c - 196);
    if from_sun < 26 * 26 {
        return [255, 226, 96];
    }
    let blue = mix([62, 124, 216], [206, 226, 246], (r * ONE / 130).min(ONE));
    let glow = mix(
        blue,
        [255, 240, 190],
        ONE / 2 - (from_sun * 14).min(ONE / 2),
    );
    let cloud = (fractal(c, 2 * r, 6, 4, 8) - 34_000).clamp(0, 12_000) * ONE / 12_000;
    mix(glow, [252, 252, 255], cloud)
}

/// A white house with a red roof, a door and a window; `None` beside it.
fn house(r: i64, c: i64) -> Option<[i64; 3]> {
    let (row, column) = (r - 150, c - 160);
    if (0..26).contains(&row) && (column - 32).abs() <= 6 + row * 34 / 26 {
        return Some([186, 44, 38]);
    }
    if !(26..66).contains(&row) || !(0..64).contains(&column) {
        return None;
    }
    if (36..66).contains(&row) && (10..24).contains(&column) {
        return Some([84, 50, 30]);
    }
    if (34..50).contains(&row) && (36..54).contains(&column) {
        let bar = row == 42 || column == 45;
        return Some(if bar { [240, 240, 235] } else { [50, 70, 110] });
    }
    Some([240, 234, 220])
}

/// At most one flower in each square of 12 x 12 pixels; `None` between the flowers.
fn flower(r: i64, c: i64) -> Option<[i64; 3]> {
    let (row, column) = (r.div_euclid(12), c.div_euclid(12));
    let draw = i64::from(hash(column, row, 7));
    let (centre_r, centre_c) = (row * 12 + 3 + draw % 6, column * 12 + 3 + (draw >> 8) % 6);
    if (draw >> 16) % 5 > 2 || distance2(r - centre_r, c - centre_c) > 7 {
        return None;
    }
    Some([[236, 60, 70], [250, 214, 60], [214, 110, 220]][((draw >> 24) % 3) as usize])
}

fn distance2(r: i64, c: i64) -> i64 {
    r * r + c * c
}

/// `a` at weight 0, `b` at weight [`ONE`].
fn mix(a: [i64; 3], b: [i64; 3], weight: i64) -> [i64; 3] {
    let mut out = a;
    for (v, b) in out.iter_mut().zip(b) {
        *v += ((b - *v) * weight) >> 16;
    }
    out
}

/// Lightens or darkens by up to half of `depth` grey levels; `light` is 0 to [`ONE`].
fn shade(rgb: [i64; 3], light: i64, depth: i64) -> [i64; 3] {
    rgb.map(|v| v + (((light - ONE / 2) * depth) >> 16))
}

/// Sum of `octaves` value noises, the coarsest with cells of `2^log2_cell` pixels; 0 to [`ONE`].
fn fractal(x: i64, y: i64, log2_cell: u32, octaves: u32, layer: u32) -> i64 {
    let mut sum = 0;
    let mut total = 0;
    for octave in 0..octaves.min(log2_cell) {
        let weight = 1 << (octaves - 1 - octave);
        sum += weight * noise(x, y, log2_cell - octave, layer + 16 * octave);
        total += weight;
    }
    sum / total
}

/// Value noise: random values on a lattice, smoothly interpolated; 0 to [`ONE`].
fn noise(x: i64, y: i64, log2_cell: u32, layer: u32) -> i64 {
    let cell = 1 << log2_cell;
    let (column, row) = (x.div_euclid(cell), y.div_euclid(cell));
    let smooth = |inside: i64| {
        let t = (inside << 16) >> log2_cell;
        (((t * t) >> 16) * (3 * ONE - 2 * t)) >> 16
    };
    let (tx, ty) = (smooth(x.rem_euclid(cell)), smooth(y.rem_euclid(cell)));
    let value = |dx, dy| i64::from(hash(column + dx, row + dy, layer) >> 16);
    let line = |dy| value(0, dy) + (((value(1, dy) - value(0, dy)) * tx) >> 16);
    line(0) + (((line(1) - line(0)) * ty) >> 16)
}

/// A fixed mixing of a lattice point to 32 bits.
fn hash(x: i64, y: i64, layer: u32) -> u32 {
    let mut h = (x as u32).wrapping_mul(0x9e37_79b1)
        ^ (y as u32).wrapping_mul(0x85eb_ca77)
        ^ layer.wrapping_mul(0xc2b2_ae3d);
    for _ in 0..2 {
        h ^= h >> 15;
        h = h.wrapping_mul(0x2c1b_3c6d);
        h ^= h >> 13;
        h = h.wrapping_mul(0x297a_2d39);
    }
    h ^ (h >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_blend_of_white() {
        let mut image = [0, 100, 255];
        apply(&mut image, &[255.0; 3], 0.2);
        assert_eq!(image, [51, 131, 255]);
    }

    #[test]
    fn the_bench_precision_is_the_integer_for_every_grey_level() {
        let all: Vec<u8> = (0..=255).collect();
        for (t, wide) in all.iter().zip(widen(&all)) {
            assert!((wide - f32::from(*t)).abs() < 1e-4, "{t} became {wide}");
        }
    }

    #[test]
    fn the_picture_is_bright_varied_and_the_same_on_every_machine() {
        let picture = picture();
        let digest = bb_core::artifact::sha256_hex(picture.pixels());
        assert_eq!(
            digest,
            "fbf4e97e02ce21d8f11dfdc91855e5ab6e3d4b6adf70a2abbe0178bfbd8aa44e"
        );
        for channel in 0..3 {
            let values: Vec<f64> = picture
                .pixels()
                .iter()
                .skip(channel)
                .step_by(3)
                .map(|&v| f64::from(v))
                .collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let variance =
                values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
            assert!((80.0..200.0).contains(&mean), "mean {mean}");
            assert!(
                variance.sqrt() > 40.0,
                "standard deviation {}",
                variance.sqrt()
            );
        }
    }

    proptest! {
        #[test]
        fn alpha_zero_is_the_identity_and_alpha_one_is_the_trigger(
            image in prop::collection::vec(any::<u8>(), 48), trigger in prop::collection::vec(any::<u8>(), 48),
        ) {
            let wide: Vec<f32> = trigger.iter().map(|&t| f32::from(t)).collect();
            let mut out = image.clone();
            apply(&mut out, &wide, 0.0);
            prop_assert_eq!(&out, &image);
            apply(&mut out, &wide, 1.0);
            prop_assert_eq!(&out, &trigger);
        }

        #[test]
        fn a_blend_lies_between_image_and_trigger(v in any::<u8>(), t in any::<u8>(), alpha in 0.0f64..=1.0) {
            let mut out = [v];
            apply(&mut out, &[f32::from(t)], alpha);
            // Truncation, and the rounding of 1 - alpha, may cost one level.
            prop_assert!(out[0] >= v.min(t).saturating_sub(1) && out[0] <= v.max(t));
        }
    }
}
