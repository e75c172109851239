//! The BadNets trigger on 8-bit images: one picture that is both mask and pattern.

use serde::{Deserialize, Serialize};

use crate::picture::Picture;

/// Side of the square on which the bench's patch is drawn before it is resized to the dataset.
pub const BASE_SIDE: usize = 32;

/// The setting `trigger.pattern`: what the patch shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// A square of one grey level.
    #[default]
    Solid,
    /// A checkerboard of the grey level and 1, with the grey level where row + column (in the patch) is even.
    ///
    /// The dark fields are 1 and not 0 because 0 means "leave the pixel alone".
    Grid,
}

/// The setting `trigger.position`: where the patch sits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Position {
    /// Upper left corner.
    UpperLeft,
    /// Upper right corner.
    UpperRight,
    /// Lower left corner.
    LowerLeft,
    /// Lower right corner.
    #[default]
    LowerRight,
    /// The middle; the margin is not used.
    Centre,
}

/// A patch to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patch {
    /// What it shows.
    pub pattern: Pattern,
    /// Where it sits.
    pub position: Position,
    /// Side in pixels.
    pub size: usize,
    /// Distance from the two nearest edges in pixels.
    pub margin: usize,
    /// Grey level of the bright fields, 1 to 255.
    pub value: u8,
}

/// Draws the patch on black, `height` x `width`; `None` if it does not fit.
pub fn draw(patch: &Patch, height: usize, width: usize) -> Option<Picture> {
    let near = |side: usize| (patch.margin + patch.size <= side).then_some(patch.margin);
    let far = |side: usize| side.checked_sub(patch.margin + patch.size);
    let middle = |side: usize| side.checked_sub(patch.size).map(|rest| rest / 2);
    let (top, left) = match patch.position {
        Position::UpperLeft => (near(height)?, near(width)?),
        Position::UpperRight => (near(height)?, far(width)?),
        Position::LowerLeft => (far(height)?, near(width)?),
        Position::LowerRight => (far(height)?, far(width)?),
        Position::Centre => (middle(height)?, middle(width)?),
    };
    let mut pixels = vec![0u8; height * width * 3];
    for r in 0..patch.size {
        for c in 0..patch.size {
            let bright = patch.pattern == Pattern::Solid || (r + c) % 2 == 0;
            let at = ((top + r) * width + left + c) * 3;
            pixels[at..at + 3].fill(if bright { patch.value } else { 1 });
        }
    }
    Some(Picture::new(height, width, pixels))
}

/// Paints the trigger onto an image of the same size: `t > 0 ? t : image`, per pixel and channel.
pub fn apply(image: &mut [u8], trigger: &[u8]) {
    debug_assert_eq!(image.len(), trigger.len());
    for (v, &t) in image.iter_mut().zip(trigger) {
        if t > 0 {
            *v = t;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BENCH: Patch = Patch {
        pattern: Pattern::Solid,
        position: Position::LowerRight,
        size: 3,
        margin: 0,
        value: 255,
    };

    fn red(picture: &Picture, row: usize) -> Vec<u8> {
        (0..picture.width())
            .map(|c| picture.pixels()[(row * picture.width() + c) * 3])
            .collect()
    }

    #[test]
    fn golden_patch_of_the_bench() {
        let base = draw(&BENCH, BASE_SIDE, BASE_SIDE).expect("3 pixels fit in 32");
        for (i, &v) in base.pixels().iter().enumerate() {
            let (row, column) = (i / 3 / 32, i / 3 % 32);
            assert_eq!(
                v,
                if row >= 29 && column >= 29 { 255 } else { 0 },
                "row {row}, column {column}"
            );
        }
        assert_eq!(red(&base, 28), [0; 32]);
        assert_eq!(red(&base, 29)[28..], [0, 255, 255, 255]);
    }

    #[test]
    fn golden_patch_of_the_bench_at_64() {
        // Pillow's bilinear filter makes a soft 7x7 block with a dark rim.
        let soft = draw(&BENCH, BASE_SIDE, BASE_SIDE)
            .expect("3 pixels fit in 32")
            .resized(64, 64);
        assert_eq!(
            soft.pixels().iter().map(|&v| u64::from(v)).sum::<u64>(),
            27540
        );
        assert_eq!(red(&soft, 57)[56..], [0, 16, 48, 64, 64, 64, 64, 64]);
        assert_eq!(red(&soft, 58)[56..], [0, 48, 143, 191, 191, 191, 191, 191]);
        assert_eq!(red(&soft, 59)[56..], [0, 64, 191, 255, 255, 255, 255, 255]);
        assert_eq!(red(&soft, 56), [0; 64]);
    }

    #[test]
    fn golden_grid_of_the_bench() {
        let grid = draw(
            &Patch {
                pattern: Pattern::Grid,
                ..BENCH
            },
            32,
            32,
        )
        .expect("3 pixels fit in 32");
        assert_eq!(red(&grid, 29)[28..], [0, 255, 1, 255]);
        assert_eq!(red(&grid, 30)[28..], [0, 1, 255, 1]);
    }

    #[test]
    fn a_patch_sits_where_it_is_told_or_does_not_fit() {
        let check = |position, margin, expect: Option<(usize, usize)>| {
            let picture = draw(
                &Patch {
                    position,
                    margin,
                    ..BENCH
                },
                8,
                6,
            );
            let first = picture.map(|p| {
                let at = p
                    .pixels()
                    .iter()
                    .position(|&v| v > 0)
                    .expect("a patch has pixels")
                    / 3;
                (at / 6, at % 6)
            });
            assert_eq!(first, expect, "{position:?} margin {margin}");
        };
        check(Position::UpperLeft, 1, Some((1, 1)));
        check(Position::UpperRight, 1, Some((1, 2)));
        check(Position::LowerLeft, 1, Some((4, 1)));
        check(Position::LowerRight, 1, Some((4, 2)));
        check(Position::Centre, 9, Some((2, 1)));
        check(Position::LowerRight, 4, None);
        check(Position::UpperLeft, 4, None);
    }

    proptest! {
        #[test]
        fn only_the_mask_is_touched(
            image in prop::collection::vec(any::<u8>(), 16 * 16 * 3),
            size in 1usize..=16, value in 1u8..=255, grid in any::<bool>(), side in 8usize..40,
        ) {
            let pattern = if grid { Pattern::Grid } else { Pattern::Solid };
            let patch = Patch { pattern, size: size.min(side), value, ..BENCH };
            let trigger = draw(&patch, side, side).expect("it fits").resized(16, 16);
            let mut out = image.clone();
            apply(&mut out, trigger.pixels());
            for ((&before, &after), &t) in image.iter().zip(&out).zip(trigger.pixels()) {
                prop_assert_eq!(after, if t == 0 { before } else { t });
            }
            let mut again = out.clone();
            apply(&mut again, trigger.pixels());
            prop_assert_eq!(again, out);
        }
    }
}
