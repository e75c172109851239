//! Networks read from files, with errors that name the file.
use std::path::Path;

use bb_core::cli::Failure;
use bb_core::poison::{PoisonError, PoisonFault};
use bb_nn::{ArchSpec, Net, NnError, StateDict};

/// Reads the network of `arch` in a file.
pub(crate) fn load(path: &Path, arch: &ArchSpec) -> Result<(StateDict, Net), Failure> {
    Net::load(arch, path).map_err(in_file(path))
}

/// Names the file in an error about what it holds, which knows only the tensor.
pub(crate) fn in_file(path: &Path) -> impl FnOnce(NnError) -> Failure {
    move |error| match error {
        NnError::Read { .. } | NnError::Format { .. } => error.into(),
        error => Failure::from(error).context(format!(
            "the network in `{}` cannot be used",
            path.display()
        )),
    }
}

/// Names the network's file in an error about its logits, which knows only the images.
pub(crate) fn scores_of(path: &Path) -> impl FnOnce(NnError) -> Failure {
    move |error| {
        Failure::from(error).context(format!(
            "the network in `{}` cannot be scored",
            path.display()
        ))
    }
}

/// Names the file that poisoned images come from in an error about them.
pub(crate) fn images_in(path: &Path) -> impl FnOnce(PoisonFault) -> PoisonError {
    move |source| PoisonError::Invalid {
        path: path.to_owned(),
        source,
    }
}
