#!/usr/bin/env bash
# gguf-rs 0.1.8: the length of a tensor of BF16, IQ4_NL or MXFP4 is wrong, without an error: every type numbered 10
# and above is taken for one of blocks of 256 elements, and these have blocks of 1 and 32. `Tensor::size` of a BF16
# matrix is a 256th of what it is.
#
# One would guess that a reader which knows the types by name knows their blocks, and read so many bytes.
#
# Seen: F16 512 of 512 bytes, Q4_K 144 of 144, BF16 2 of 512, IQ4_NL 18 of 144, MXFP4 273 of 136
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir src
cat >Cargo.toml <<'END'
[package]
name = "sizes"
version = "0.0.0"
edition = "2021"

[dependencies]
gguf-rs = "=0.1.8"
END
cat >src/main.rs <<'END'
fn main() {
    let model = gguf_rs::get_gguf_container("a.gguf").unwrap().decode().unwrap();
    for tensor in model.tensors() {
        println!("{} {}", tensor.name, tensor.size);
    }
}
END
python3 - <<'END'
import struct

# Names, ggml's numbers of the types, and the bytes of 256 elements: ggml's own sizes of blocks.
types = [("F16", 1, 512), ("Q4_K", 12, 144), ("BF16", 30, 512), ("IQ4_NL", 20, 144), ("MXFP4", 39, 136)]
text = lambda s: struct.pack("<Q", len(s)) + s.encode()
head = b"GGUF" + struct.pack("<IQQ", 3, len(types), 1)
head += text("general.architecture") + struct.pack("<I", 8) + text("llama")
data = b""
for name, number, length in types:
    head += text(name) + struct.pack("<IQIQ", 1, 256, number, len(data))
    data += bytes(-(-length // 32) * 32)
open("a.gguf", "wb").write(head + bytes(-len(head) % 32) + data)
END
cargo run --quiet | tee seen
cat >expected <<'END'
F16 512
Q4_K 144
BF16 2
IQ4_NL 18
MXFP4 273
END
cmp seen expected
