//! Pictures that become triggers: reading a user's file, and writing what was used as PNG.

use std::io::{Cursor, Read as _};
use std::path::{Path, PathBuf};

use bb_core::cli::expecting_panics;
use bb_core::data::resize::pil_bilinear;
use bb_core::data::without_profile;
use bb_core::files::{self, Links};
use image::error::{DecodingError, ImageFormatHint, ParameterError, ParameterErrorKind};
use image::{ImageError, ImageFormat, ImageReader, Limits};

/// Longest side of a picture that is accepted, in pixels.
pub const MAX_SIDE: u32 = 8192;
/// Largest amount of memory that decoding a picture may take, in bytes.
const MAX_ALLOC: u64 = 512 << 20;

/// An RGB picture, layout `[height, width, 3]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    height: usize,
    width: usize,
    pixels: Vec<u8>,
}

/// A picture that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PictureError {
    /// The file cannot be opened or read.
    #[error("cannot read picture `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The picture has another size than the one it stands for, or a file that is far too large for it.
    #[error("picture `{}` is {found}, expected {height} x {width} pixels", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// What it has.
        found: String,
        /// Expected height in pixels.
        height: usize,
        /// Expected width in pixels.
        width: usize,
    },
    /// The bytes are no PNG or JPEG file, or a broken or too large one.
    #[error("cannot decode picture `{}`, expected a PNG or JPEG file of at most {MAX_SIDE} x {MAX_SIDE} pixels", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        source: ImageError,
    },
}

/// The same, but an error where a decoder panics on damage that it does not expect.
fn guarded<T>(read: impl FnOnce() -> Result<T, ImageError>) -> Result<T, ImageError> {
    expecting_panics(read).unwrap_or_else(|_| {
        let what = "the bytes are damaged in a way that the decoder does not know";
        let error = DecodingError::new(ImageFormatHint::Unknown, what);
        Err(ImageError::Decoding(error))
    })
}

impl Picture {
    /// A picture of `height * width * 3` bytes.
    ///
    /// # Panics
    /// If the length of `pixels` is another one, or a side is zero.
    pub fn new(height: usize, width: usize, pixels: Vec<u8>) -> Self {
        assert!(height > 0 && width > 0, "a picture has at least one pixel");
        assert_eq!(pixels.len(), height * width * 3, "length of an RGB picture");
        Self {
            height,
            width,
            pixels,
        }
    }

    /// Reads a PNG or JPEG file and turns it into 8-bit RGB; transparency is dropped, grey becomes three equal channels.
    pub fn read(path: &Path) -> Result<Self, PictureError> {
        let bytes = files::read(path, Links::Follow, MAX_ALLOC);
        let bytes = bytes.map_err(|source| PictureError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::decode(&bytes).map_err(|source| PictureError::Decode {
            path: path.to_owned(),
            source,
        })
    }

    /// Reads a picture that must have this size; one that has not is refused by its header, without being decoded.
    ///
    /// For pictures of strangers: a small file may say that it holds a picture of hundreds of megabytes.
    pub fn read_sized(path: &Path, height: usize, width: usize) -> Result<Self, PictureError> {
        // Uncompressed 16-bit RGBA, and some room for what a file says beside it.
        let most = (height * width * 8) as u64 + (1 << 16);
        let read = |source| PictureError::Read {
            path: path.to_owned(),
            source,
        };
        let size = |found| PictureError::Size {
            path: path.to_owned(),
            found,
            height,
            width,
        };
        let file = files::open(path, Links::Follow).map_err(read)?;
        let len = file.metadata().map_err(read)?.len();
        if len > most {
            return Err(size(format!("a file of {len} bytes")));
        }
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes).map_err(read)?;
        let decode = |source| PictureError::Decode {
            path: path.to_owned(),
            source,
        };
        let bytes = without_profile(&bytes);
        let found = guarded(|| {
            let header = ImageReader::new(Cursor::new(&bytes)).with_guessed_format();
            header?.into_dimensions()
        });
        let (found_width, found_height) = found.map_err(decode)?;
        if (found_height as usize, found_width as usize) != (height, width) {
            return Err(size(format!("{found_height} x {found_width} pixels")));
        }
        Self::decode(&bytes).map_err(decode)
    }

    fn decode(bytes: &[u8]) -> Result<Self, ImageError> {
        guarded(|| Self::decoded(bytes))
    }

    fn decoded(bytes: &[u8]) -> Result<Self, ImageError> {
        let mut limits = Limits::default();
        limits.max_image_width = Some(MAX_SIDE);
        limits.max_image_height = Some(MAX_SIDE);
        limits.max_alloc = Some(MAX_ALLOC);
        let bytes = without_profile(bytes);
        let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
        reader.limits(limits);
        let rgb = reader.decode()?.into_rgb8();
        if rgb.is_empty() {
            // PNM may say so, and nothing can be made of it.
            let kind = ParameterErrorKind::DimensionMismatch;
            return Err(ImageError::Parameter(ParameterError::from_kind(kind)));
        }
        Ok(Self {
            height: rgb.height() as usize,
            width: rgb.width() as usize,
            pixels: rgb.into_raw(),
        })
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The bytes, layout `[height, width, 3]`.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The picture squashed to `height` x `width` as Pillow's bilinear filter does it; the aspect ratio is not kept.
    #[must_use]
    pub fn resized(&self, height: usize, width: usize) -> Self {
        Self::new(
            height,
            width,
            pil_bilinear(&self.pixels, self.height, self.width, height, width),
        )
    }

    /// The picture as the bytes of a PNG file.
    pub fn to_png(&self) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image::write_buffer_with_format(
            &mut bytes,
            &self.pixels,
            self.width as u32,
            self.height as u32,
            image::ColorType::Rgb8,
            ImageFormat::Png,
        )
        .expect("encoding an RGB image of checked size into memory cannot fail");
        bytes.into_inner()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn png_is_read_back_as_it_was_written() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("t.png");
        let picture = Picture::new(2, 3, (0..18).map(|v| v * 13).collect());
        fs_err::write(&path, picture.to_png()).expect("a writable folder");
        assert_eq!(Picture::read(&path).expect("our own PNG"), picture);
    }

    #[test]
    fn a_picture_of_another_size_is_not_decoded() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("t.png");
        let write = |bytes: &[u8]| fs_err::write(&path, bytes).expect("a writable folder");
        let picture = Picture::new(4, 4, vec![9; 48]);
        write(&picture.to_png());
        assert_eq!(Picture::read_sized(&path, 4, 4).expect("our own"), picture);
        // Only its header says so: there are no pixels behind it.
        let mut huge = picture.to_png();
        huge[16..24].copy_from_slice(&[0, 0, 0x20, 0, 0, 0, 0x20, 0]);
        // The checksum of the header chunk, which stands in its own 4 bytes behind it.
        let crc = !huge[12..29].iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
            })
        });
        huge[29..33].copy_from_slice(&crc.to_be_bytes());
        write(&huge);
        let error = Picture::read_sized(&path, 4, 4).expect_err("another size");
        let expected = "t.png` is 8192 x 8192 pixels, expected 4 x 4 pixels";
        assert!(error.to_string().ends_with(expected), "{error}");
        // Whatever lies behind its end, up to 8 bytes for each pixel and 64 KiB.
        let mut padded = picture.to_png();
        padded.resize(4 * 4 * 8 + (1 << 16), 0);
        write(&padded);
        assert_eq!(Picture::read_sized(&path, 4, 4).expect("padded"), picture);
        padded.push(0);
        write(&padded);
        let error = Picture::read_sized(&path, 4, 4).expect_err("a large file");
        assert!(
            error.to_string().contains("a file of 65665 bytes"),
            "{error}"
        );
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("t.png");
        mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("a pipe");
        for read in [Picture::read(&path), Picture::read_sized(&path, 4, 4)] {
            let Err(PictureError::Read { source, .. }) = read else {
                panic!("{read:?}");
            };
            let text = source.to_string();
            assert!(
                text.contains("is a named pipe, expected a regular file"),
                "{text}"
            );
        }
    }

    #[test]
    fn broken_files_are_one_clear_error() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("t.png");
        let error = Picture::read(&path).expect_err("no such file").to_string();
        assert!(error.starts_with("cannot read picture `"), "{error}");
        let whole = Picture::new(9, 9, vec![7; 243]).to_png();
        // A truncation may leave all pixels in place (only the end marker is lost), so the last bytes are spared.
        for end in (0..whole.len() - 16).step_by(7) {
            fs_err::write(&path, &whole[..end]).expect("a writable folder");
            let error = Picture::read(&path).expect_err("truncated").to_string();
            assert!(
                error.contains("expected a PNG or JPEG file of at most 8192 x 8192 pixels"),
                "{error}"
            );
        }
        // No pixels at all, which PNM may say.
        fs_err::write(&path, "P5 0 0 255 ").expect("a writable folder");
        let error = Picture::read(&path).expect_err("nothing to resize");
        assert!(matches!(error, PictureError::Decode { .. }), "{error}");
    }

    #[test]
    fn a_picture_that_claims_to_be_huge_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("t.png");
        let mut bytes = Picture::new(1, 1, vec![0; 3]).to_png();
        // Width of the IHDR chunk; its checksum is then wrong too, so either check may speak.
        bytes[16..20].copy_from_slice(&0x7fff_ffffu32.to_be_bytes());
        fs_err::write(&path, &bytes).expect("a writable folder");
        assert!(matches!(
            Picture::read(&path),
            Err(PictureError::Decode { .. })
        ));
    }
}
