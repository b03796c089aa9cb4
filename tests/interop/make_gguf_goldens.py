"""Makes tests/fixtures/gguf: blocks of every type that ggml's quantizer fills, and what ggml reads
them as. Run with xllamacpp (requirements-llama.txt): make_gguf_goldens.py OUT.gguf"""

import array
import ctypes
import math
import random
import sys

import llama

KINDS = [kind for kind in llama.BLOCKS if llama.BLOCKS[kind][0] > 1]


def arbitrary(lib, kind, noise, count):
    """Blocks of bytes that no quantizer need have made, such as those of a scale below zero, of which every
    value is a number."""
    elements, size = llama.BLOCKS[kind]
    blocks = b""
    while len(blocks) < count * size:
        block = bytes(noise.randrange(256) for _ in range(size))
        read = array.array("f", llama.dequantized(lib, kind, block, elements))
        # Scales of NVFP4 have no sign, and 127 is no number.
        sound = kind != "NVFP4" or max(block[:4]) < 127
        if sound and all(math.isfinite(value) for value in read):
            blocks += block
    return blocks


def main(path):
    lib, noise, tensors = llama.library(), random.Random(8), []
    for kind in KINDS:
        # Two rows, so that rows are told apart; one block of zeros, which has a scale of zero.
        width = 2 * llama.BLOCKS[kind][0]
        values = [noise.gauss(0, 1) * (1 + i // width) for i in range(2 * width)]
        values[: width // 2] = [0.0] * (width // 2)
        # Without importance some types are not made.
        even = (ctypes.c_float * width)(*[1.0] * width) if kind.startswith(("IQ1", "IQ2")) else None
        values = (ctypes.c_float * len(values))(*values)
        blocks = llama.quantized(lib, kind, values, 2, width, even)
        blocks += arbitrary(lib, kind, noise, 4)
        tensors.append((f"{kind}.blocks", kind, [4, width], blocks))
        read = llama.dequantized(lib, kind, blocks, 4 * width)
        tensors.append((f"{kind}.values", "F32", [4, width], read))
    keys = [("general.architecture", "str", "golden"), ("golden.text", "str", "caf\u00e9")]
    keys += [("golden.texts", "[str]", ["a", "", "b c"]), ("golden.ids", "[i32]", [-1, 2, 3])]
    keys += [("golden.float", "f32", 1e-5), ("golden.flag", "bool", True), ("golden.byte", "u8", 255)]
    llama.write(path, keys, tensors)


if __name__ == "__main__":
    main(sys.argv[1])
