//! Bilinear resizing that gives Pillow's bits.
//!
//! torchvision resizes PIL images with Pillow, so every published model that was trained on resized images saw these
//! pixels. The `image` crate's triangle filter differs from them by a level or two, hence a version of our own:
//! Pillow's fixed-point arithmetic with 22 fractional bits, a horizontal and then a vertical pass, 8 bits in between.
//! Pillow 11 takes the passes in this order for every shape. Version 13 begins with the vertical one for some, such as
//! 60 x 44 (height x width) to 32 x 32, which changes a fifth of the values by a level.

/// Interleaved channels per pixel (R, G, B).
const CHANNELS: usize = 3;
/// Fractional bits of the weights; 255 * 2^22 and the sum's rounding stay below 2^31.
const PRECISION: u32 = 22;

/// Resizes an RGB image `src` of shape `[h, w, 3]` to `[oh, ow, 3]`, 8 bits per channel.
///
/// The filter is a triangle whose support grows with the reduction (anti-aliased when shrinking), and the result
/// equals Pillow's `Image.resize((ow, oh), BILINEAR)` bit for bit. The same size returns the same pixels.
///
/// # Panics
/// If `src` is not `h * w * 3` bytes long, or a side is zero.
pub fn pil_bilinear(src: &[u8], h: usize, w: usize, oh: usize, ow: usize) -> Vec<u8> {
    assert!(
        h > 0 && w > 0 && oh > 0 && ow > 0,
        "no side of an image may be zero: {h}x{w} to {oh}x{ow}"
    );
    assert_eq!(src.len(), h * w * CHANNELS, "bytes of a {h}x{w} RGB image");
    let wide = if ow == w {
        src.to_vec()
    } else {
        horizontal(src, h, w, &filters(w, ow))
    };
    if oh == h {
        return wide;
    }
    vertical(&wide, ow, &filters(h, oh))
}

/// The source pixels that one output pixel is made of.
struct Filter {
    first: usize,
    weights: Vec<u32>,
}

fn filters(input: usize, output: usize) -> Vec<Filter> {
    let scale = input as f64 / output as f64;
    let support = scale.max(1.0); // the triangle has radius one in output pixels, never less than one input pixel
    let sharpness = 1.0 / support; // Pillow multiplies by the reciprocal, and the last bit depends on it
    (0..output)
        .map(|o| {
            let centre = (o as f64 + 0.5) * scale;
            // The casts truncate towards zero like Pillow's; both arguments are non-negative where it matters.
            let first = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(input);
            let raw: Vec<f64> = (first..end)
                .map(|i| (1.0 - ((i as f64 - centre + 0.5) * sharpness).abs()).max(0.0))
                .collect();
            let sum: f64 = raw.iter().sum();
            let weights = raw
                .iter()
                .map(|weight| (0.5 + weight / sum * f64::from(1_u32 << PRECISION)) as u32)
                .collect();
            Filter { first, weights }
        })
        .collect()
}

/// Adds up weighted pixels in fixed point and rounds to 8 bits.
fn blend(pixels: impl Iterator<Item = u8>, weights: &[u32]) -> u8 {
    let sum = pixels
        .zip(weights)
        .fold(1_u32 << (PRECISION - 1), |sum, (pixel, weight)| {
            sum + u32::from(pixel) * weight
        });
    (sum >> PRECISION).min(255) as u8
}

fn horizontal(src: &[u8], h: usize, w: usize, filters: &[Filter]) -> Vec<u8> {
    let mut out = Vec::with_capacity(h * filters.len() * CHANNELS);
    for row in src.chunks_exact(w * CHANNELS) {
        for filter in filters {
            for channel in 0..CHANNELS {
                let pixels = row[filter.first * CHANNELS + channel..]
                    .iter()
                    .step_by(CHANNELS);
                out.push(blend(pixels.copied(), &filter.weights));
            }
        }
    }
    out
}

fn vertical(src: &[u8], w: usize, filters: &[Filter]) -> Vec<u8> {
    let stride = w * CHANNELS;
    let mut out = Vec::with_capacity(filters.len() * stride);
    for filter in filters {
        for column in 0..stride {
            let pixels = src[filter.first * stride + column..].iter().step_by(stride);
            out.push(blend(pixels.copied(), &filter.weights));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image(h: usize, w: usize) -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), h * w * CHANNELS)
    }

    fn sized_image() -> impl Strategy<Value = (usize, usize, Vec<u8>)> {
        (1_usize..24, 1_usize..24)
            .prop_flat_map(|(h, w)| image(h, w).prop_map(move |src| (h, w, src)))
    }

    proptest! {
        #[test]
        fn the_same_size_is_the_identity((h, w, src) in sized_image()) {
            prop_assert_eq!(pil_bilinear(&src, h, w, h, w), src);
        }

        #[test]
        fn a_constant_image_stays_constant(value: u8, h in 1_usize..70, w in 1_usize..70, oh in 1_usize..70, ow in 1_usize..70) {
            let out = pil_bilinear(&vec![value; h * w * CHANNELS], h, w, oh, ow);
            prop_assert_eq!(out, vec![value; oh * ow * CHANNELS]);
        }

        #[test]
        fn no_value_leaves_the_range_of_its_channel((h, w, src) in sized_image(), oh in 1_usize..40, ow in 1_usize..40) {
            let out = pil_bilinear(&src, h, w, oh, ow);
            prop_assert_eq!(out.len(), oh * ow * CHANNELS);
            for channel in 0..CHANNELS {
                let of = |bytes: &[u8]| -> Vec<u8> { bytes.iter().skip(channel).step_by(CHANNELS).copied().collect() };
                let (before, after) = (of(&src), of(&out));
                prop_assert!(after.iter().min() >= before.iter().min());
                prop_assert!(after.iter().max() <= before.iter().max());
            }
        }

        #[test]
        fn mirroring_commutes_up_to_one_level((h, w, src) in sized_image(), oh in 1_usize..40, ow in 1_usize..40) {
            let mirror = |bytes: &[u8], w: usize| -> Vec<u8> {
                bytes.chunks_exact(w * CHANNELS).flat_map(|row| row.chunks_exact(CHANNELS).rev().flatten().copied()).collect()
            };
            let a = mirror(&pil_bilinear(&src, h, w, oh, ow), ow);
            let b = pil_bilinear(&mirror(&src, w), h, w, oh, ow);
            prop_assert!(a.iter().zip(&b).all(|(a, b)| a.abs_diff(*b) <= 1));
        }
    }

    #[test]
    fn weights_are_those_of_pillow_by_hand() {
        // One row 0, 100 to four columns: Pillow gives 0, 25, 75, 100.
        let src = [0, 0, 0, 100, 100, 100];
        let out = pil_bilinear(&src, 1, 2, 1, 4);
        assert_eq!(out, [0, 0, 0, 25, 25, 25, 75, 75, 75, 100, 100, 100]);
        // Shrinking by two averages over a support of four with weights 1 3 3 1, cut at the border to 3 3 1.
        let src: Vec<u8> = [0, 70, 140, 210].iter().flat_map(|v| [*v; 3]).collect();
        let out = pil_bilinear(&src, 1, 4, 1, 2);
        assert_eq!(out, [50, 50, 50, 160, 160, 160]);
    }
}
