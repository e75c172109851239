//! The SIG trigger on 8-bit images: vertical stripes that are added.

/// What is added to each column: `delta * sin(2 pi * frequency * column / width)`.
///
/// Precision as in the bench, where it decides whether a column of the wave's zeros loses a level: the sine in `f64`,
/// stored as `f32`.
pub fn row(width: usize, delta: f64, frequency: f64) -> Vec<f32> {
    let wave = |column: usize| {
        let angle = 2.0 * std::f64::consts::PI * column as f64 * frequency / width as f64;
        (delta * angle.sin()) as f32
    };
    (0..width).map(wave).collect()
}

/// Adds the row to every row and channel of an image `[h, w, 3]`: `trunc(clip(image + row, 0, 255))`.
///
/// Truncation instead of rounding, as in the bench, so that a column loses more in a trough than it gains on a crest.
pub fn apply(image: &mut [u8], row: &[f32]) {
    debug_assert_eq!(image.len() % (row.len() * 3), 0);
    for line in image.chunks_exact_mut(row.len() * 3) {
        for (pixel, &wave) in line.chunks_exact_mut(3).zip(row) {
            for v in pixel {
                *v = (f64::from(*v) + f64::from(wave)).clamp(0.0, 255.0) as u8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_columns_of_the_bench() {
        // Differences on a grey image, columns 0 to 16; the sine of 6 pi is a little below 0, which costs a level.
        let expect = [
            0, 36, 28, -16, -40, -16, 28, 36, 0, -37, -29, 15, 40, 15, -29, -37, -1,
        ];
        let mut image = [127u8; 2 * 32 * 3];
        apply(&mut image, &row(32, 40.0, 6.0));
        for (i, &v) in image.iter().enumerate() {
            let column = i / 3 % 32;
            if let Some(&difference) = expect.get(column) {
                assert_eq!(i32::from(v) - 127, difference, "column {column}");
            }
        }
    }

    #[test]
    fn the_ends_of_the_scale_are_kept() {
        let wave = row(32, 40.0, 6.0);
        for (grey, low, high) in [(0, 0, 40), (255, 215, 255), (250, 210, 255)] {
            let mut image = [grey; 32 * 3];
            apply(&mut image, &wave);
            assert!(image.iter().all(|v| (low..=high).contains(v)), "{image:?}");
        }
    }

    proptest! {
        #[test]
        fn a_pixel_moves_by_the_wave_and_by_less_than_a_level_more(
            grey in any::<u8>(), width in 4usize..70, delta in 1.0f64..255.0, periods in 0.1f64..2.0,
        ) {
            let wave = row(width, delta, periods);
            let mut image = vec![grey; 3 * width * 3];
            apply(&mut image, &wave);
            for (i, &v) in image.iter().enumerate() {
                let exact = (f64::from(grey) + f64::from(wave[i / 3 % width])).clamp(0.0, 255.0);
                prop_assert!(exact - f64::from(v) >= 0.0 && exact - f64::from(v) < 1.0);
            }
        }
    }
}
