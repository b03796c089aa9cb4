//! Hashes as text.

use sha2::{Digest, Sha256};

/// A finished hash in hexadecimal.
pub(crate) fn hex(hash: Sha256) -> String {
    format!("{:x}", hash.finalize())
}
