//! What a file that is not what its name says most likely is, so that the message can say so.

/// The beginnings of files that turn up under the names of weights and configurations.
const KNOWN: &[(&[u8], &str)] = &[
    (
        b"version https://git-lfs",
        "this is a Git LFS pointer, not the file itself: run `git lfs pull` in the folder",
    ),
    (b"<!doctype html", "this looks like an HTML page (an error page?): download the file again"),
    (b"<html", "this looks like an HTML page (an error page?): download the file again"),
    (
        b"pk\x03\x04",
        "this is a zip archive, most likely a PyTorch pickle under another name: pickle is never \
         read; convert it with transformers, `model.save_pretrained(dir)`",
    ),
    (b"gguf", "this is a GGUF file: name it .gguf"),
    (
        b"\x89hdf",
        "this is an HDF5 file: convert it with transformers, `model.save_pretrained(dir)`",
    ),
    (b"\x1f\x8b", "this is a gzip file: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "this is a zstandard file: unpack it first"),
];

/// How many bytes of a file [`identify`] wants to see.
pub(crate) const SEEN: usize = 64;

/// Says what a file that begins with `start` is, if it is a known foreign format.
///
/// Ask only when the file has already failed to be what it should be: a good safetensors file may
/// begin with any bytes at all, as its length comes first.
pub(crate) fn identify(start: &[u8]) -> Option<&'static str> {
    let text = start.trim_ascii_start();
    let begins =
        |magic: &[u8]| text.get(..magic.len()).is_some_and(|head| head.eq_ignore_ascii_case(magic));
    if let Some((_, what)) = KNOWN.iter().find(|(magic, _)| begins(magic)) {
        return Some(what);
    }
    // Protocol 2 to 5 of pickle: the PROTO opcode and its argument.
    matches!(start, [0x80, 2..=5, ..]).then_some(
        "this is a Python pickle: pickle is never read; convert it with transformers, \
         `model.save_pretrained(dir)`",
    )
}
