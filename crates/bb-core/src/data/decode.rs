//! From the bytes of a PNG or JPEG file to 8-bit RGB, within limits.
//!
//! The limits are checked from the header, before memory for the pixels is taken, so that a file of a few hundred
//! bytes that announces a huge picture costs nothing.

use std::fmt::Write;
use std::io::Cursor;

use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::{DynamicImage, ImageDecoder, ImageError, Limits};

use super::images::CHANNELS;
use super::resize;

/// Longest side of an image in pixels.
const MAX_SIDE: u32 = 4096;
/// Most bytes that a decoder may fill or use beside its output.
const MAX_BYTES: u64 = 64_000_000;

/// Why the bytes of an image cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageFault {
    /// Some other kind of data.
    #[error("neither PNG nor JPEG: the bytes begin with `{head}`")]
    Format {
        /// The first bytes, in hexadecimal.
        head: String,
    },
    /// Too many pixels on a side.
    #[error("the image has {height}x{width} pixels, the limit is {MAX_SIDE}x{MAX_SIDE}")]
    Side {
        /// Height announced by the file.
        height: u32,
        /// Width announced by the file.
        width: u32,
    },
    /// Too many bytes once decoded.
    #[error("the image decodes to {bytes} bytes, the limit is {MAX_BYTES}")]
    Memory {
        /// Bytes after decoding.
        bytes: u64,
    },
    /// A JPEG file that stops early; decoders would fill the rest with grey.
    #[error("the JPEG data ends before its end marker")]
    Truncated,
    /// The decoder refused the bytes.
    #[error("the image bytes cannot be decoded")]
    Undecodable(#[source] Box<ImageError>),
}

impl From<ImageError> for ImageFault {
    fn from(error: ImageError) -> Self {
        Self::Undecodable(Box::new(error))
    }
}

/// An RGB image `[h, w, 3]`.
#[derive(Debug)]
pub(super) struct Rgb {
    pub(super) h: usize,
    pub(super) w: usize,
    pub(super) pixels: Vec<u8>,
}

enum Format {
    Png,
    Jpeg,
}

fn format(bytes: &[u8]) -> Result<Format, ImageFault> {
    if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        Ok(Format::Png)
    } else if bytes.starts_with(&[0xff, 0xd8, 0xff]) {
        Ok(Format::Jpeg)
    } else {
        let mut head = String::new();
        for byte in bytes.iter().take(8) {
            write!(head, "{byte:02x}").expect("writing to a string succeeds");
        }
        Err(ImageFault::Format { head })
    }
}

/// Decodes a PNG or JPEG file; grey becomes RGB, an alpha channel is dropped, both as Pillow's `convert("RGB")` does.
pub(super) fn rgb(bytes: &[u8]) -> Result<Rgb, ImageFault> {
    let reader = Cursor::new(bytes);
    match format(bytes)? {
        Format::Png => pixels(PngDecoder::with_limits(reader, limits())?),
        Format::Jpeg => {
            let decoder = JpegDecoder::new(reader)?;
            if !is_complete_jpeg(bytes) {
                return Err(ImageFault::Truncated);
            }
            pixels(decoder)
        }
    }
}

/// Decodes into `out`, which has shape `[h, w, 3]`, resizing as Pillow does if the image has another size.
pub(super) fn rgb_into(bytes: &[u8], h: usize, w: usize, out: &mut [u8]) -> Result<(), ImageFault> {
    let image = rgb(bytes)?;
    if (image.h, image.w) == (h, w) {
        out.copy_from_slice(&image.pixels);
    } else {
        out.copy_from_slice(&resize::pil_bilinear(&image.pixels, image.h, image.w, h, w));
    }
    Ok(())
}

/// Height and width from the header alone.
pub(super) fn size(bytes: &[u8]) -> Result<(usize, usize), ImageFault> {
    let reader = Cursor::new(bytes);
    let (width, height) = match format(bytes)? {
        Format::Png => checked_size(&PngDecoder::with_limits(reader, limits())?)?,
        Format::Jpeg => checked_size(&JpegDecoder::new(reader)?)?,
    };
    Ok((height as usize, width as usize))
}

fn limits() -> Limits {
    let mut limits = Limits::no_limits();
    // The sides are checked by `checked_size`, whose message names them.
    limits.max_alloc = Some(MAX_BYTES);
    limits
}

fn checked_size(decoder: &impl ImageDecoder) -> Result<(u32, u32), ImageFault> {
    let (width, height) = decoder.dimensions();
    if width.max(height) > MAX_SIDE {
        return Err(ImageFault::Side { height, width });
    }
    if decoder.total_bytes() > MAX_BYTES {
        return Err(ImageFault::Memory {
            bytes: decoder.total_bytes(),
        });
    }
    Ok((width, height))
}

fn pixels(decoder: impl ImageDecoder) -> Result<Rgb, ImageFault> {
    let (width, height) = checked_size(&decoder)?;
    let image = DynamicImage::from_decoder(decoder)?.into_rgb8();
    debug_assert_eq!(image.len(), width as usize * height as usize * CHANNELS);
    Ok(Rgb {
        h: height as usize,
        w: width as usize,
        pixels: image.into_raw(),
    })
}

/// Whether an end marker follows the first scan.
///
/// The decoder is lenient and would invent the missing rows; a thumbnail in the metadata has an end marker of its
/// own, so the search begins behind the metadata.
fn is_complete_jpeg(bytes: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xda;
    const END_OF_IMAGE: [u8; 2] = [0xff, 0xd9];
    let mut at = 2; // behind the start marker
    while let Some(&[marker, kind, high, low]) = bytes.get(at..at + 4) {
        if marker != 0xff {
            return false;
        }
        if kind == 0xff {
            at += 1; // fill bytes may precede a marker
            continue;
        }
        at += 2 + usize::from(u16::from_be_bytes([high, low]));
        if kind == START_OF_SCAN {
            return bytes
                .get(at..)
                .is_some_and(|scan| scan.windows(2).any(|pair| pair == END_OF_IMAGE));
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ExtendedColorType, ImageEncoder};

    fn png(w: u32, h: u32, color: ExtendedColorType, pixels: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        image::codecs::png::PngEncoder::new(&mut out)
            .write_image(pixels, w, h, color)
            .expect("a small image can be encoded");
        out
    }

    fn jpeg(w: u32, h: u32, color: ExtendedColorType, pixels: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut out, 100)
            .write_image(pixels, w, h, color)
            .expect("a small image can be encoded");
        out
    }

    /// A PNG whose header announces `w` by `h` pixels of 8 or 16 bits and four channels, with a right checksum.
    fn announcing(w: u32, h: u32, bits: u8) -> Vec<u8> {
        let mut chunk = b"IHDR".to_vec();
        chunk.extend_from_slice(&w.to_be_bytes());
        chunk.extend_from_slice(&h.to_be_bytes());
        chunk.extend_from_slice(&[bits, 6, 0, 0, 0]);
        let crc = !chunk.iter().fold(!0_u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
            })
        });
        let mut out = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
        out.extend_from_slice(&chunk);
        out.extend_from_slice(&crc.to_be_bytes());
        out.extend_from_slice(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
        out
    }

    #[test]
    fn grey_becomes_rgb_and_alpha_is_dropped() {
        let grey = rgb(&png(2, 1, ExtendedColorType::L8, &[7, 200])).expect("decodes");
        assert_eq!((grey.h, grey.w), (1, 2));
        assert_eq!(grey.pixels, [7, 7, 7, 200, 200, 200]);
        let alpha = rgb(&png(
            1,
            2,
            ExtendedColorType::Rgba8,
            &[1, 2, 3, 0, 4, 5, 6, 255],
        ))
        .expect("decodes");
        assert_eq!((alpha.h, alpha.w), (2, 1));
        assert_eq!(alpha.pixels, [1, 2, 3, 4, 5, 6]);
        let grey = rgb(&jpeg(8, 8, ExtendedColorType::L8, &[90; 64])).expect("decodes");
        assert_eq!(grey.pixels, [90; 192]);
    }

    #[test]
    fn another_size_is_resized() {
        let mut out = [0; 4 * 4 * 3];
        rgb_into(&png(8, 2, ExtendedColorType::L8, &[33; 16]), 4, 4, &mut out).expect("decodes");
        assert_eq!(out, [33; 48]);
    }

    #[test]
    fn huge_images_are_refused_from_their_header() {
        assert!(matches!(
            rgb(&announcing(4097, 1, 8)),
            Err(ImageFault::Side {
                height: 1,
                width: 4097
            })
        ));
        assert!(matches!(
            rgb(&announcing(1 << 30, 1 << 30, 8)),
            Err(ImageFault::Side { .. } | ImageFault::Undecodable(_))
        ));
        assert!(matches!(
            rgb(&announcing(4096, 4096, 16)),
            Err(ImageFault::Memory { bytes: 134_217_728 })
        ));
        assert!(size(&announcing(4097, 1, 8)).is_err());
        assert_eq!(size(&announcing(40, 30, 8)).expect("a header"), (30, 40));
    }

    #[test]
    fn a_truncated_or_foreign_file_is_refused_at_every_length() {
        let pixels: Vec<u8> = (0..32 * 32 * 3).map(|i| (i * 7 % 256) as u8).collect();
        for whole in [
            png(32, 32, ExtendedColorType::Rgb8, &pixels),
            jpeg(32, 32, ExtendedColorType::Rgb8, &pixels),
        ] {
            rgb(&whole).expect("the whole file decodes");
            // The last chunk of a PNG is empty and may be missing without loss.
            for length in (0..whole.len() - 12).step_by(5) {
                assert!(
                    rgb(&whole[..length]).is_err(),
                    "{length} of {} bytes",
                    whole.len()
                );
            }
        }
        let fault = rgb(b"<html>").expect_err("no image");
        assert_eq!(
            fault.to_string(),
            "neither PNG nor JPEG: the bytes begin with `3c68746d6c3e`"
        );
    }
}
