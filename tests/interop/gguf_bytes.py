"""How many blocks of the files that nearest rounding writes are, byte for byte, those of ggml's quantizer, and
what the others lose in squared error, by type. Run with xllamacpp (requirements-llama.txt).

gguf_bytes.py FOLDER FILE.gguf... where files are written from the folder by --method rtn"""

import array
import ctypes
import pathlib
import sys

import llama
from gguf_make import paired, tensors, theirs

# Where ggml and we round by the same rule.
SAME = {"Q4_0", "Q5_0", "Q8_0"}


def squares(values, read, elements):
    """The squared error of each block."""
    each = [(v - r) ** 2 for v, r in zip(values, read)]
    return [sum(each[at : at + elements]) for at in range(0, len(each), elements)]


def main(folder, *files):
    lib, folder, found = llama.library(), pathlib.Path(folder), {}
    config = llama.config(folder)
    sources = {theirs(name): (name, *rest) for name, *rest in tensors(folder / "model.safetensors")}
    for path in files:
        for name, kind, shape, blocks in llama.read(path):
            elements, size = llama.BLOCKS[kind]
            if elements == 1:
                continue
            source, _, raw = sources[name]
            if "q_proj" in source or "k_proj" in source:
                raw = paired(raw, shape[0], config["head_dim"])
            values = (ctypes.c_float * (len(raw) // 4)).from_buffer_copy(raw)
            other = llama.quantized(lib, kind, values, *shape)
            count = len(blocks) // size
            differ = [i for i in range(count) if blocks[i * size : (i + 1) * size] != other[i * size : (i + 1) * size]]
            said = found.setdefault(kind, [0, 0, 0, 0.0, 0.0])
            said[0], said[1] = said[0] + count, said[1] + count - len(differ)
            if not differ:
                continue
            ours, loss = (
                squares(values, array.array("f", llama.dequantized(lib, kind, made, len(values))), elements)
                for made in (blocks, other)
            )
            for i in differ:
                said[2] += ours[i] <= loss[i]
                said[3], said[4] = said[3] + ours[i], said[4] + loss[i]
    print("| type | blocks | equal bytes | of the others, ours loses less | all of them, ours / ggml's |")
    print("|---|---|---|---|---|")
    for kind, (count, equal, less, ours, loss) in found.items():
        others = f"{less} of {count - equal} | {ours / loss:.3f}" if equal < count else "- | -"
        print(f"| {kind} | {count} | {equal} | {others} |")
        if equal < count and (kind in SAME or ours >= loss):
            sys.exit(f"{kind}: not ggml's bytes, and no better")


if __name__ == "__main__":
    main(*sys.argv[1:])
