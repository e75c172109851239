//! Decoded images and the labels beside them.

use std::fmt;
use std::sync::Arc;

use super::DataError;

/// Channels of every image: R, G, B.
pub(super) const CHANNELS: usize = 3;

/// Decoded images, 8 bits per channel, layout `[n, h, w, 3]` (RGB, rows from the top).
///
/// A clone shares the pixels.
#[derive(Clone)]
pub struct Images {
    /// Of these images, and of more where they are the first of others.
    bytes: Arc<Vec<u8>>,
    n: usize,
    h: usize,
    w: usize,
}

impl Images {
    /// Takes pixels of shape `[n, h, w, 3]`.
    ///
    /// # Errors
    /// [`DataError::PixelCount`] if there are not `n * h * w * 3` bytes.
    pub fn new(n: usize, h: usize, w: usize, pixels: Vec<u8>) -> Result<Self, DataError> {
        let found = pixels.len();
        if byte_count(n, h, w) != Some(found) {
            return Err(DataError::PixelCount { n, h, w, found });
        }
        let bytes = Arc::new(pixels);
        Ok(Self { bytes, n, h, w })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// Height of each image in pixels.
    pub fn height(&self) -> usize {
        self.h
    }

    /// Width of each image in pixels.
    pub fn width(&self) -> usize {
        self.w
    }

    /// Channels of each image, always 3 (R, G, B).
    pub fn channels(&self) -> usize {
        CHANNELS
    }

    /// Image `i` as `[h, w, 3]`.
    ///
    /// # Panics
    /// If `i` is not below [`len`](Self::len).
    pub fn image(&self, i: usize) -> &[u8] {
        assert!(i < self.n, "image {i} of {}", self.n);
        let size = self.image_bytes();
        &self.as_bytes()[i * size..(i + 1) * size]
    }

    /// All pixels as `[n, h, w, 3]`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.n * self.image_bytes()]
    }

    /// A copy of the images at `indices`, in that order; an index may come more than once.
    ///
    /// # Panics
    /// If an index is not below [`len`](Self::len).
    #[must_use]
    pub fn select(&self, indices: &[usize]) -> Self {
        let mut pixels = Vec::with_capacity(indices.len() * self.image_bytes());
        for &i in indices {
            pixels.extend_from_slice(self.image(i));
        }
        Self {
            bytes: Arc::new(pixels),
            n: indices.len(),
            ..*self
        }
    }

    /// The first `n` images, or all if there are fewer; the pixels are shared.
    #[must_use]
    pub fn take(&self, n: usize) -> Self {
        Self {
            n: n.min(self.n),
            ..self.clone()
        }
    }

    fn image_bytes(&self) -> usize {
        self.h * self.w * CHANNELS
    }
}

impl fmt::Debug for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Images[{}, {}, {}, {CHANNELS}]", self.n, self.h, self.w)
    }
}

impl PartialEq for Images {
    fn eq(&self, other: &Self) -> bool {
        (self.n, self.h, self.w) == (other.n, other.h, other.w)
            && self.as_bytes() == other.as_bytes()
    }
}

/// `n * h * w * 3`, or nothing if no machine could hold it.
pub(super) fn byte_count(n: usize, h: usize, w: usize) -> Option<usize> {
    n.checked_mul(h)?.checked_mul(w)?.checked_mul(CHANNELS)
}

/// Images with one label each.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// The images.
    pub images: Images,
    /// The class of each image, in the same order.
    pub labels: Arc<[u32]>,
}

impl Split {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// A copy of the images and labels at `indices`, in that order.
    ///
    /// # Panics
    /// If an index is not below [`len`](Self::len).
    #[must_use]
    pub fn select(&self, indices: &[usize]) -> Self {
        Self {
            images: self.images.select(indices),
            labels: indices.iter().map(|&i| self.labels[i]).collect(),
        }
    }

    /// The first `n` images, or all if there are fewer; the pixels are shared.
    #[must_use]
    pub fn take(&self, n: usize) -> Self {
        Self {
            images: self.images.take(n),
            labels: self.labels.iter().take(n).copied().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(n: usize, h: usize, w: usize) -> Images {
        let pixels = (0..n * h * w * CHANNELS).map(|i| (i % 251) as u8).collect();
        Images::new(n, h, w, pixels).expect("the length fits")
    }

    #[test]
    fn a_buffer_of_the_wrong_length_is_refused() {
        for (n, h, w, bytes) in [
            (2, 2, 2, 23),
            (2, 2, 2, 25),
            (1, 1, 1, 0),
            (usize::MAX, 2, 2, 12),
        ] {
            let result = Images::new(n, h, w, vec![0; bytes]);
            assert!(
                matches!(result, Err(DataError::PixelCount { found, .. }) if found == bytes),
                "{n}x{h}x{w} with {bytes} bytes"
            );
        }
    }

    #[test]
    fn views_and_copies_hold_the_right_pixels() {
        let images = numbered(5, 2, 3);
        let picked = images.select(&[4, 0, 4]);
        assert_eq!((picked.len(), picked.height(), picked.width()), (3, 2, 3));
        assert_eq!(picked.image(0), images.image(4));
        assert_eq!(picked.image(1), images.image(0));
        assert_eq!(images.take(2).as_bytes(), &images.as_bytes()[..36]);
        assert_eq!(images.take(9), images);
        assert!(images.take(0).is_empty());

        let split = Split {
            images,
            labels: (0..5).collect(),
        };
        assert_eq!(&*split.select(&[3, 1]).labels, &[3, 1]);
        assert_eq!(split.take(3).len(), 3);
        assert_eq!(split.take(3).images.len(), 3);
    }
}
