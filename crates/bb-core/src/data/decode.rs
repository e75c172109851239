//! From the bytes of an image file to 8-bit RGB, within limits.
//!
//! The pixels are those of Pillow's `Image.open(file).convert("RGB")`, which is what PyTorch's users train on: alpha,
//! colour profiles and EXIF orientation are not applied, the high byte counts of 16-bit colours, and 16-bit grey is cut
//! at 255. JPEG decoders differ from each other by a level or two.
//!
//! The limits are checked from the header, before memory for the pixels is taken, so that a file of a few hundred
//! bytes that announces a huge picture costs nothing.

use std::borrow::Cow;
use std::fmt::Write;
use std::io::Cursor;
use std::sync::atomic::{AtomicUsize, Ordering};

use image::codecs::bmp::BmpDecoder;
use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::pnm::PnmDecoder;
use image::{ColorType, DynamicImage, ImageDecoder, ImageError, Limits};

use super::budget::Budget;
use super::images::CHANNELS;
use super::resize;
use crate::cli::expecting_panics;

/// Longest side of an image in pixels.
const MAX_SIDE: u32 = 4096;
/// Most bytes that a decoder may fill or use beside its output.
const MAX_BYTES: u64 = 64_000_000;
/// Scans of a JPEG file that cost little more than one: most that come in several have ten.
const USUAL_SCANS: u64 = 12;
/// What every PNG file begins with.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
const START_OF_SCAN: [u8; 2] = [0xff, 0xda];

/// Why the bytes of an image cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageFault {
    /// Some other kind of data.
    #[error("not a PNG, JPEG, BMP or PNM image: the bytes begin with `{head}`")]
    Format {
        /// The first bytes, in hexadecimal.
        head: String,
    },
    /// A side of no pixel.
    #[error("the image has no pixels")]
    Empty,
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
    /// Together with the images before it is too much for their files.
    #[error(
        "the images so far decode to more than {most} bytes, the limit for files of their size"
    )]
    Together {
        /// The most bytes that may come of the files.
        most: u64,
    },
    /// A JPEG file that stops early; decoders would fill the rest with grey.
    #[error("the JPEG data ends before its end marker")]
    Truncated,
    /// The decoder met what it did not expect, and gave up in a panic.
    #[error("the image bytes are damaged in a way that the decoder does not know")]
    Unexpected,
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
    /// Whether 16-bit grey values were cut at 255.
    pub(super) clipped: bool,
}

/// Counts, over the images of a split, of what the user should know.
#[derive(Debug, Default)]
pub(super) struct Tally {
    resized: AtomicUsize,
    clipped: AtomicUsize,
    /// Bytes that were decoded, of any size.
    decoded: Budget,
}

impl Tally {
    /// Takes the bytes of a file into account that images are in.
    pub(super) fn files(&self, bytes: u64) {
        self.decoded.add(bytes);
    }

    /// Images that had another size.
    pub(super) fn resized(&self) -> usize {
        self.resized.load(Ordering::Relaxed)
    }

    /// Images of 16-bit grey with values that were cut at 255.
    pub(super) fn clipped(&self) -> usize {
        self.clipped.load(Ordering::Relaxed)
    }
}

#[derive(Clone, Copy)]
enum Format {
    Png,
    Jpeg,
    Bmp,
    Pnm,
}

fn format(bytes: &[u8]) -> Result<Format, ImageFault> {
    if bytes.starts_with(PNG) {
        Ok(Format::Png)
    } else if bytes.starts_with(&[0xff, 0xd8, 0xff]) {
        Ok(Format::Jpeg)
    } else if bytes.starts_with(b"BM") {
        Ok(Format::Bmp)
    } else if matches!(bytes, [b'P', b'1'..=b'6', next, ..] if next.is_ascii_whitespace() || *next == b'#')
    {
        Ok(Format::Pnm)
    } else {
        let mut head = String::new();
        for byte in bytes.iter().take(8) {
            write!(head, "{byte:02x}").expect("writing to a string succeeds");
        }
        Err(ImageFault::Format { head })
    }
}

/// The same, but an error where a decoder panics.
fn guarded<T>(read: impl FnOnce() -> Result<T, ImageFault>) -> Result<T, ImageFault> {
    expecting_panics(read).unwrap_or(Err(ImageFault::Unexpected))
}

/// Decodes an image file of any format that is read; what it costs is counted in `budget` before.
pub(super) fn rgb(bytes: &[u8], budget: &Budget) -> Result<Rgb, ImageFault> {
    guarded(|| decode(bytes, budget))
}

fn decode(bytes: &[u8], budget: &Budget) -> Result<Rgb, ImageFault> {
    let format = format(bytes)?;
    let bytes = &*without_profile(bytes);
    let reader = Cursor::new(bytes);
    let pixels = |decoder: Box<dyn ImageDecoder + '_>, narrow| -> Result<Rgb, ImageFault> {
        let (width, height) = checked_size(&decoder)?;
        let rgb = u64::from(width) * u64::from(height) * CHANNELS as u64;
        let passes = match format {
            Format::Jpeg => 1 + scans(bytes) / USUAL_SCANS,
            _ => 1,
        };
        let cost = decoder.total_bytes().max(rgb).saturating_mul(passes);
        let cost = cost.saturating_add(bytes.len() as u64);
        budget
            .spend(cost)
            .map_err(|most| ImageFault::Together { most })?;
        decoded(decoder, narrow)
    };
    match format {
        Format::Png => {
            /// Place of the colour type in the header, which is always the first chunk.
            const COLOUR_TYPE: usize = 25;
            let decoder = PngDecoder::with_limits(reader, limits())?;
            // The decoder turns a transparent grey into an alpha channel, so the type comes from the file itself.
            let narrow = match bytes.get(COLOUR_TYPE) {
                Some(0) => Narrow::Clip,
                _ => Narrow::HighByte,
            };
            pixels(Box::new(decoder), narrow)
        }
        Format::Jpeg => {
            let decoder = JpegDecoder::new(reader)?;
            if !is_complete_jpeg(bytes) {
                return Err(ImageFault::Truncated);
            }
            pixels(Box::new(decoder), Narrow::HighByte)
        }
        Format::Bmp => pixels(Box::new(BmpDecoder::new(reader)?), Narrow::HighByte),
        Format::Pnm => {
            let decoder = PnmDecoder::new(reader)?;
            let narrow = match decoder.color_type() {
                ColorType::L16 => Narrow::Clip,
                _ => Narrow::Round,
            };
            pixels(Box::new(decoder), narrow)
        }
    }
}

/// Decodes into `out`, which has shape `[h, w, 3]`, resizing as Pillow does if the image has another size.
pub(super) fn rgb_into(
    bytes: &[u8],
    h: usize,
    w: usize,
    out: &mut [u8],
    tally: &Tally,
) -> Result<(), ImageFault> {
    let image = rgb(bytes, &tally.decoded)?;
    if image.clipped {
        tally.clipped.fetch_add(1, Ordering::Relaxed);
    }
    if (image.h, image.w) == (h, w) {
        out.copy_from_slice(&image.pixels);
    } else {
        tally.resized.fetch_add(1, Ordering::Relaxed);
        out.copy_from_slice(&resize::pil_bilinear(&image.pixels, image.h, image.w, h, w));
    }
    Ok(())
}

/// Height and width from the header alone.
pub(super) fn size(bytes: &[u8]) -> Result<(usize, usize), ImageFault> {
    guarded(|| announced(bytes))
}

fn announced(bytes: &[u8]) -> Result<(usize, usize), ImageFault> {
    let format = format(bytes)?;
    let bytes = without_profile(bytes);
    let reader = Cursor::new(&*bytes);
    let (width, height) = match format {
        Format::Png => checked_size(&PngDecoder::with_limits(reader, limits())?)?,
        Format::Jpeg => checked_size(&JpegDecoder::new(reader)?)?,
        Format::Bmp => checked_size(&BmpDecoder::new(reader)?)?,
        Format::Pnm => checked_size(&PnmDecoder::new(reader)?)?,
    };
    Ok((height as usize, width as usize))
}

/// A PNG file without its colour profile, which is not applied, and which a decoder would unpack before anything else;
/// other bytes as they are.
pub fn without_profile(bytes: &[u8]) -> Cow<'_, [u8]> {
    /// Length and kind of a chunk, and length, kind and checksum.
    const HEAD: usize = 8;
    const FRAME: usize = 12;
    let (mut at, mut kept, mut out) = (HEAD, 0, Vec::new());
    if !bytes.starts_with(PNG) {
        return Cow::Borrowed(bytes);
    }
    while let Some(chunk) = bytes.get(at..at.saturating_add(HEAD)) {
        let length = u32::from_be_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]) as usize;
        let end = at.saturating_add(length).saturating_add(FRAME);
        if &chunk[4..] == b"IDAT" || end > bytes.len() {
            break;
        }
        if &chunk[4..] == b"iCCP" {
            out.extend_from_slice(&bytes[kept..at]);
            kept = end;
        }
        at = end;
    }
    if kept == 0 {
        return Cow::Borrowed(bytes);
    }
    out.extend_from_slice(&bytes[kept..]);
    Cow::Owned(out)
}

/// How often a JPEG file goes over its pixels; no other marker looks like that of a scan.
fn scans(bytes: &[u8]) -> u64 {
    bytes
        .windows(2)
        .filter(|pair| *pair == START_OF_SCAN)
        .count() as u64
}

fn limits() -> Limits {
    let mut limits = Limits::no_limits();
    // The sides are checked by `checked_size`, whose message names them.
    limits.max_alloc = Some(MAX_BYTES);
    limits
}

fn checked_size(decoder: &impl ImageDecoder) -> Result<(u32, u32), ImageFault> {
    let (width, height) = decoder.dimensions();
    if width.min(height) == 0 {
        return Err(ImageFault::Empty);
    }
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

/// How samples of 16 bits become 8.
#[derive(Clone, Copy)]
enum Narrow {
    /// Values above 255 become 255: what Pillow does with 16-bit grey.
    Clip,
    /// What Pillow does with all other 16-bit PNG files.
    HighByte,
    /// What Pillow does with 16-bit PPM files.
    Round,
}

fn decoded(decoder: impl ImageDecoder, narrow: Narrow) -> Result<Rgb, ImageFault> {
    let (width, height) = checked_size(&decoder)?;
    let image = DynamicImage::from_decoder(decoder)?;
    let (pixels, clipped) = match image.as_flat_samples_u16() {
        None => (image.into_rgb8().into_raw(), false),
        Some(flat) => {
            let channels = usize::from(image.color().channel_count());
            let clipped = matches!(narrow, Narrow::Clip)
                && flat
                    .samples
                    .chunks_exact(channels)
                    .any(|pixel| pixel[0] > 255);
            let byte = |sample: u16| match narrow {
                Narrow::Clip => sample.min(255) as u8,
                Narrow::HighByte => (sample >> 8) as u8,
                Narrow::Round => ((u32::from(sample) + 128) / 257) as u8,
            };
            let rgb = |pixel: &[u16]| match *pixel {
                [r, g, b] | [r, g, b, _] => [r, g, b],
                _ => [pixel[0]; CHANNELS],
            };
            let pixels = flat.samples.chunks_exact(channels);
            (
                pixels.flat_map(|pixel| rgb(pixel).map(byte)).collect(),
                clipped,
            )
        }
    };
    debug_assert_eq!(pixels.len(), width as usize * height as usize * CHANNELS);
    Ok(Rgb {
        h: height as usize,
        w: width as usize,
        pixels,
        clipped,
    })
}

/// Whether an end marker follows the first scan.
///
/// The decoder is lenient and would invent the missing rows; a thumbnail in the metadata has an end marker of its
/// own, so the search begins behind the metadata.
fn is_complete_jpeg(bytes: &[u8]) -> bool {
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
        if [marker, kind] == START_OF_SCAN {
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

    fn rgb(bytes: &[u8]) -> Result<Rgb, ImageFault> {
        super::rgb(bytes, &Budget::default())
    }

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
        let mut out = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
        out.extend_from_slice(&chunk);
        out.extend_from_slice(&crc(&chunk));
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

    /// The values are those of Pillow 13.0.0 for the same files.
    #[test]
    fn sixteen_bits_become_eight_as_in_pillow() {
        let values: [u16; 12] = [
            0, 1, 100, 127, 255, 256, 511, 4095, 32767, 32768, 65407, 65535,
        ];
        let clipped = [0, 1, 100, 127, 255, 255, 255, 255, 255, 255, 255, 255];
        let high = [0, 0, 0, 0, 0, 1, 1, 15, 127, 128, 255, 255];
        let samples = |each: usize| -> Vec<u8> {
            let each = values.iter().flat_map(|v| std::iter::repeat_n(*v, each));
            each.flat_map(u16::to_ne_bytes).collect()
        };
        let file = |color, each| png(12, 1, color, &samples(each));
        let grey = file(ExtendedColorType::L16, 1);
        let transparent = with_chunk(&grey, *b"tRNS", &100_u16.to_be_bytes());
        let pgm = [
            b"P5 12 1 65535\n".to_vec(),
            values.iter().flat_map(|v| v.to_be_bytes()).collect(),
        ]
        .concat();
        for (file, expect, cut) in [
            (grey, clipped, true),
            (transparent, clipped, true),
            (pgm, clipped, true),
            (file(ExtendedColorType::La16, 2), high, false),
            (file(ExtendedColorType::Rgb16, 3), high, false),
            (file(ExtendedColorType::Rgba16, 4), high, false),
        ] {
            let image = rgb(&file).expect("decodes");
            let reds: Vec<u8> = image.pixels.iter().step_by(3).copied().collect();
            assert_eq!(reds, expect);
            assert_eq!(image.clipped, cut);
        }
        let bytes: Vec<u8> = [7_u16, 255].iter().flat_map(|v| v.to_ne_bytes()).collect();
        let dark = rgb(&png(2, 1, ExtendedColorType::L16, &bytes)).expect("decodes");
        assert_eq!(
            (dark.pixels, dark.clipped),
            (vec![7, 7, 7, 255, 255, 255], false)
        );
        let ppm = [
            b"P6 1 2 65535\n".to_vec(),
            vec![0, 0, 0, 255, 1, 127, 1, 128, 156, 64, 255, 255],
        ];
        assert_eq!(
            rgb(&ppm.concat()).expect("decodes").pixels,
            [0, 1, 1, 1, 156, 255]
        );
    }

    #[test]
    fn the_old_formats_are_read_as_in_pillow() {
        for (file, expect) in [
            (
                &b"P6 2 1 255\n\x01\x02\x03\xff\x00\x07"[..],
                [1, 2, 3, 255, 0, 7],
            ),
            (
                b"P6\n# GIMP\n2 1\n15\n\x00\x01\x07\x0f\x0f\x0f",
                [0, 17, 119, 255, 255, 255],
            ),
            (b"P3 2 1 255 1 2 3 255 0 7", [1, 2, 3, 255, 0, 7]),
            (b"P5 2 1 255 \x05\xc8", [5, 5, 5, 200, 200, 200]),
            (b"P4 2 1 \x80", [0, 0, 0, 255, 255, 255]),
        ] {
            let image = rgb(file).expect("decodes");
            assert_eq!((image.h, image.w, &image.pixels[..]), (1, 2, &expect[..]));
            assert_eq!(size(file).expect("a header"), (1, 2));
        }
        let mut bmp = Vec::new();
        image::codecs::bmp::BmpEncoder::new(&mut bmp)
            .write_image(&[1, 2, 3, 4, 5, 6], 1, 2, ExtendedColorType::Rgb8)
            .expect("a small image can be encoded");
        assert_eq!(rgb(&bmp).expect("decodes").pixels, [1, 2, 3, 4, 5, 6]);
        for (file, expect) in [
            (
                &b"P6 5000 1 255\n"[..],
                "the image has 1x5000 pixels, the limit is 4096x4096",
            ),
            (
                b"P6 4096 4096 65535\n",
                "the image decodes to 100663296 bytes, the limit is 64000000",
            ),
            (b"P6 0 0 255\n", "the image has no pixels"),
            (
                b"P7\nWIDTH 1\n",
                "not a PNG, JPEG, BMP or PNM image: the bytes begin with `50370a5749445448`",
            ),
            (b"P6 2 2 255\n\x01\x02", "the image bytes cannot be decoded"),
        ] {
            assert_eq!(rgb(file).expect_err(expect).to_string(), expect);
        }
    }

    /// The file with one more chunk behind its header.
    fn with_chunk(png: &[u8], kind: [u8; 4], data: &[u8]) -> Vec<u8> {
        /// End of the signature and the header.
        const HEADER: usize = 33;
        let chunk = [&kind[..], data].concat();
        let length = (data.len() as u32).to_be_bytes();
        [
            &png[..HEADER],
            &length,
            &chunk,
            &crc(&chunk),
            &png[HEADER..],
        ]
        .concat()
    }

    fn crc(chunk: &[u8]) -> [u8; 4] {
        let crc = !chunk.iter().fold(!0_u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
            })
        });
        crc.to_be_bytes()
    }

    #[test]
    fn another_size_is_resized() {
        let mut out = [0; 4 * 4 * 3];
        let (tally, image) = (
            Tally::default(),
            png(8, 2, ExtendedColorType::L8, &[33; 16]),
        );
        rgb_into(&image, 4, 4, &mut out, &tally).expect("decodes");
        assert_eq!(out, [33; 48]);
        assert_eq!(tally.resized(), 1);
        rgb_into(&image, 2, 8, &mut out, &tally).expect("decodes");
        assert_eq!(tally.resized(), 1, "the same size");
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
    fn a_colour_profile_is_cut_out_wherever_it_stands() {
        let plain = png(2, 1, ExtendedColorType::L8, &[7, 9]);
        let with = |png: &[u8]| with_chunk(png, *b"iCCP", b"p\0\0 and so on");
        let text = with_chunk(&plain, *b"tEXt", b"a\0b");
        for (file, expect) in [
            (with(&plain), &plain),
            (with(&with(&plain)), &plain),
            (with(&text), &text),
            (text.clone(), &text),
        ] {
            assert_eq!(*without_profile(&file), **expect);
            assert_eq!(rgb(&file).expect("decodes").pixels, [7, 7, 7, 9, 9, 9]);
            for end in 0..file.len() {
                let _ = without_profile(&file[..end]);
            }
        }
        let photo = jpeg(2, 1, ExtendedColorType::L8, &[7, 9]);
        assert_eq!(*without_profile(&photo), *photo);
    }

    #[test]
    fn images_of_one_budget_share_it() {
        let (small, budget) = (png(2, 1, ExtendedColorType::L8, &[7, 9]), Budget::default());
        let large = jpeg(3000, 3000, ExtendedColorType::L8, &vec![90; 9_000_000]);
        let all = super::rgb(&large, &budget).and_then(|_| super::rgb(&large, &budget));
        all.expect("54 MB");
        super::rgb(&small, &budget).expect("a few bytes more");
        let fault = super::rgb(&large, &budget).expect_err("81 MB");
        assert_eq!(
            fault.to_string(),
            "the images so far decode to more than 67108864 bytes, the limit for files of their size"
        );
        // Each dozen of scans counts as much as the first.
        let scans = [large, START_OF_SCAN.repeat(23), vec![0xff, 0xd9]].concat();
        let fault = super::rgb(&scans, &Budget::default()).expect_err("81 MB");
        assert!(matches!(fault, ImageFault::Together { .. }), "{fault}");
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
            "not a PNG, JPEG, BMP or PNM image: the bytes begin with `3c68746d6c3e`"
        );
    }
}
