//! The Trojan trigger on 8-bit images: a picture that is added where it is not black, and the shape it is made in.

use serde::{Deserialize, Serialize};

use crate::picture::Picture;

/// The setting `trigger.addition`: what becomes of a sum above 255.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Addition {
    /// It begins again at 0.
    #[default]
    Wrap,
    /// It is 255.
    Saturate,
}

/// Adds the trigger to an image of the same size.
pub fn apply(image: &mut [u8], trigger: &[u8], addition: Addition) {
    debug_assert_eq!(image.len(), trigger.len());
    for (v, &t) in image.iter_mut().zip(trigger) {
        *v = match addition {
            Addition::Wrap => v.wrapping_add(t),
            Addition::Saturate => v.saturating_add(t),
        };
    }
}

/// Side of the square on which the shape is drawn before it is resized to the dataset.
const BASE_SIDE: i32 = 224;
/// Row of the drop's tip.
const TIP: i32 = 117;
/// Row and column of the middle of its round part.
const CENTRE: (i32, i32) = (172, 161);
/// Radius of the round part.
const RADIUS: i32 = 31;

/// The built-in mask: a white drop on black, right of and below the middle.
///
/// It has the place and about the size of the bench's picture, which is not ours to ship.
pub fn drop_mask(height: usize, width: usize) -> Picture {
    let side = BASE_SIDE as usize;
    let mut pixels = Vec::with_capacity(side * side * 3);
    // The two lines from the tip touch the circle where they leave the drop's pointed part.
    let long = CENTRE.0 - TIP;
    let tangent = long * long - RADIUS * RADIUS;
    for r in 0..BASE_SIDE {
        for c in 0..BASE_SIDE {
            let (below_tip, down, across) = (r - TIP, r - CENTRE.0, c - CENTRE.1);
            let round = down * down + across * across <= RADIUS * RADIUS;
            let pointed = below_tip >= 0
                && below_tip * long <= tangent
                && across * across * tangent <= below_tip * below_tip * RADIUS * RADIUS;
            pixels.extend([if round || pointed { 255 } else { 0 }; 3]);
        }
    }
    Picture::new(side, side, pixels).resized(height, width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sums_wrap_as_in_the_bench_or_saturate() {
        let check = |addition, expect: [u8; 4]| {
            let mut image = [0, 10, 100, 250];
            apply(&mut image, &[0, 180, 200, 255], addition);
            assert_eq!(image, expect);
        };
        check(Addition::Wrap, [0, 190, 44, 249]);
        check(Addition::Saturate, [0, 190, 255, 255]);
    }

    #[test]
    fn the_drop_has_the_size_and_the_place_of_the_bench_s_mask() {
        // The bench's has 117 pixels, 42 of them white, in rows 16 to 29 and columns 17 to 29 at 32 x 32, and 375 and 214
        // at 64 x 64.
        for (side, pixels, white, rows, columns) in [
            (32, 107, 42, 16..=29, 17..=29),
            (64, 355, 224, 32..=58, 35..=58),
        ] {
            let mask = drop_mask(side, side);
            let all_white = mask.pixels().chunks_exact(3).filter(|p| p[0] == 255);
            assert_eq!(all_white.count(), white);
            let mut count = 0;
            for (i, pixel) in mask.pixels().chunks_exact(3).enumerate() {
                assert!(pixel.iter().all(|&v| v == pixel[0]));
                if pixel[0] > 0 {
                    count += 1;
                    let (r, c) = (i / side, i % side);
                    assert!(rows.contains(&r) && columns.contains(&c), "{r}, {c}");
                }
            }
            assert_eq!(count, pixels, "at {side}");
        }
    }

    proptest! {
        #[test]
        fn only_the_shape_changes(image in prop::collection::vec(any::<u8>(), 48), at in 0usize..48) {
            let mut trigger = [0; 48];
            trigger[at] = 200;
            for addition in [Addition::Wrap, Addition::Saturate] {
                let mut out = image.clone();
                apply(&mut out, &trigger, addition);
                for i in 0..48 {
                    prop_assert_eq!(out[i] == image[i], i != at || (addition == Addition::Saturate && image[i] == 255));
                }
            }
        }
    }
}
