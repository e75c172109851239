//! What tests of the reader write: pickles opcode by opcode, and the archives around them.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use bb_zoo::torch::pickle::{Limits, Pickle};
use bb_zoo::torch::{Checkpoint, NamedTensor, TorchError, attack};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Writes opcodes one by one.
#[derive(Clone, Default)]
pub(crate) struct Program(pub(crate) Vec<u8>);

impl Program {
    pub(crate) fn new() -> Self {
        Self(vec![0x80, 2])
    }

    pub(crate) fn op(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn text(self, text: &str) -> Self {
        let len = u32::try_from(text.len()).expect("short").to_le_bytes();
        self.op(b"X").op(&len).op(text.as_bytes())
    }

    pub(crate) fn int(self, n: i32) -> Self {
        self.op(b"J").op(&n.to_le_bytes())
    }

    pub(crate) fn global(self, module: &str, name: &str) -> Self {
        self.op(format!("c{module}\n{name}\n").as_bytes())
    }

    /// A tuple of whole numbers.
    pub(crate) fn ints(self, numbers: &[i32]) -> Self {
        let begun = self.op(b"(");
        numbers
            .iter()
            .fold(begun, |program, n| program.int(*n))
            .op(b"t")
    }

    /// A float tensor that is a view of storage `key` with `len` elements.
    pub(crate) fn tensor(
        self,
        key: &str,
        len: i32,
        offset: i32,
        shape: &[i32],
        stride: &[i32],
    ) -> Self {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .op(b"(")
            .op(b"(")
            .text("storage")
            .global("torch", "FloatStorage")
            .text(key)
            .text("cpu")
            .int(len)
            .op(b"tQ")
            .int(offset)
            .ints(shape)
            .ints(stride)
            .op(&[0x89])
            .global("collections", "OrderedDict")
            .op(b")RtR")
    }

    pub(crate) fn end(self) -> Vec<u8> {
        self.op(b".").0
    }

    pub(crate) fn read(self) -> Result<Pickle, String> {
        Pickle::read(&self.end(), Limits::default()).map_err(|e| e.to_string())
    }
}

/// An archive with these files.
pub(crate) fn archive(files: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut writer = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(method);
    for (name, content) in files {
        writer.start_file(*name, options).expect("a new name");
        writer.write_all(content).expect("memory");
    }
    writer.finish().expect("memory").into_inner()
}

/// A file with these bytes, in a folder of its own.
pub(crate) fn put(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("file.pt");
    fs_err::write(&path, bytes).expect("a small file");
    (folder, path)
}

/// The tensors of a bare state dictionary.
pub(crate) fn tensors(path: &Path) -> Result<Vec<NamedTensor>, TorchError> {
    let checkpoint = Checkpoint::open(path)?;
    attack::state(&checkpoint, "", &checkpoint.pickle().root)
}
