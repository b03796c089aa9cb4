//! A library that loads in place of NVIDIA's driver and runs kernels emulated, so that whole programs run
//! where there is no GPU: see `driver.cpp` for what it holds them to.

use crate::{BuildError, Library, compiler, failed, run};
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = include_str!("driver.cpp");

/// The driver, compiled.
#[derive(Debug)]
pub struct Driver {
    folder: PathBuf,
    kernels: PathBuf,
}

impl Driver {
    /// Compiles it for the kernels of `library`; `room` is a folder that keeps it until it changes.
    ///
    /// # Errors
    /// If there is no compiler, or it refuses.
    pub fn build(library: &Library, room: &Path) -> Result<Self, BuildError> {
        let mut hash = Sha256::new();
        for text in [&*compiler()?, SOURCE.as_bytes()] {
            hash.update(text);
        }
        let folder = room.join(format!("driver-{:x}", hash.finalize()));
        // The name that is looked for first: a real driver may have both.
        let made = folder.join("libcuda.so");
        if !made.exists() {
            std::fs::create_dir_all(&folder).map_err(failed)?;
            let process = std::process::id();
            let source = folder.join(format!("driver-{process}.cpp"));
            let scratch = folder.join(format!("driver-{process}.so"));
            std::fs::write(&source, SOURCE).map_err(failed)?;
            let flags =
                ["-std=c++20", "-fPIC", "-shared", "-O2", "-Wall", "-Werror", "-pthread", "-o"];
            let files = [scratch.as_os_str(), source.as_os_str(), "-ldl".as_ref()];
            run(&flags.iter().map(OsStr::new).chain(files).collect::<Vec<_>>())?;
            std::fs::rename(&scratch, &made).map_err(failed)?;
            std::fs::remove_file(&source).map_err(failed)?;
        }
        Ok(Self { folder, kernels: library.path.clone() })
    }

    /// Has a program find it, and a GPU in it.
    pub fn serve(&self, program: &mut Command) {
        program.env("LD_LIBRARY_PATH", &self.folder).env("EMULATED_KERNELS", &self.kernels);
    }
}
