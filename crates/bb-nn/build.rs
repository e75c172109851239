//! Compiles the CUDA kernels to PTX for `include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"))`.
//! Does nothing without the feature `cuda`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const SOURCE: &str = "cuda/kernels.cu";

/// What it includes.
const PARTS: &str = "cuda/kernels";

/// Oldest GPUs on which the kernels run, as a virtual architecture: Ampere.
const ARCHITECTURE: &str = "compute_80";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for path in [SOURCE, PARTS] {
        println!("cargo::rerun-if-changed={path}");
    }
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    if let Err(message) = compile(&nvcc(), &out.join("kernels.ptx")) {
        eprintln!("error: {message}");
        exit(1);
    }
}

/// `$NVCC`, else the compiler of the toolkit that `$CUDA_HOME` or `$CUDA_PATH` names, else the one on the `PATH`.
fn nvcc() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    ["CUDA_HOME", "CUDA_PATH"]
        .into_iter()
        .filter_map(env::var_os)
        .map(|toolkit| Path::new(&toolkit).join("bin/nvcc"))
        .find(|nvcc| nvcc.exists())
        .unwrap_or_else(|| "nvcc".into())
}

fn compile(nvcc: &Path, ptx: &Path) -> Result<(), String> {
    // Without -fmad=false products and sums would be fused that the CPU kernels do not fuse.
    let status = Command::new(nvcc)
        .args(["--ptx", "-O3", "-std=c++17", "-fmad=false"])
        .arg(format!("-arch={ARCHITECTURE}"))
        .arg(SOURCE)
        .arg("-o")
        .arg(ptx)
        .status()
        .map_err(|error| {
            format!(
                "cannot run the CUDA compiler `{}` ({error}): set NVCC or CUDA_HOME, or build with \
                 scripts/build_cuda.sh, which fetches a toolkit",
                nvcc.display()
            )
        })?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("`{}` failed on {SOURCE}: {status}", nvcc.display()))
    }
}
