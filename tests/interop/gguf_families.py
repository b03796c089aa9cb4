"""llama.cpp on GGUF files of tiny models, against the logits of their fixtures, which are transformers':

gguf_families.py FIXTURES FILES NAME...

FILES/NAME has the file that was made of FIXTURES/NAME, or several. Prints for each the perplexity of
the fixture's tokens by both, and the largest difference of a logit in units of the largest logit."""

import ctypes
import json
import math
import pathlib
import struct
import sys

import llama
from gguf_perplexity import Batch, Params

# Of perplexities, and of logits in units of the largest.
TOLERANCE = 0.002
# llama.cpp rounds what it multiplies with weights of 16 bits to their type.
ROUNDED = ("llama-bf16", "llama-f16", "llama-mixed-dtypes", "qwen3-tied-bf16")
ROUNDED_TOLERANCE = 0.03
# Where the parameters of a context say so of attention and of keys and values, and their defaults.
FLASH, KEYS, VALUES = 13, 26, 27
DEFAULTS = (0xFFFFFFFF, 1, 1)


def golden(path):
    """The token ids and the logits of a fixture."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    part = lambda name: data[8 + length :][slice(*header[name]["data_offsets"])]
    count, width = header["logits"]["shape"]
    ids = struct.unpack(f"<{count}q", part("input_ids"))
    logits = struct.unpack(f"<{count * width}f", part("logits"))
    return ids, [logits[i * width : (i + 1) * width] for i in range(count)]


def load(lib, path, tokens):
    """A context of llama.cpp."""
    pointer = ctypes.c_void_p
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    if not model:
        sys.exit(f"llama.cpp does not load {path}")
    params = lib.llama_context_default_params()
    params.words[0] = params.words[1] = params.words[2] = tokens
    if tuple(params.words[i] for i in (FLASH, KEYS, VALUES)) != DEFAULTS:
        sys.exit("the parameters of a context lie elsewhere in this llama.cpp")
    # As they are, and kept as F32.
    params.words[FLASH] = params.words[KEYS] = params.words[VALUES] = 0
    context = lib.llama_init_from_model(pointer(model), params)
    if not context:
        sys.exit(f"llama.cpp makes no context of {path}")
    return pointer(context)


def logits(lib, context, ids, width):
    """Of every position."""
    count = len(ids)
    batch = lib.llama_batch_init(count, 0, 1)
    batch.count = count
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.seqs[i] = token, i, 1
        batch.seq[i][0], batch.logits[i] = 0, 1
    if lib.llama_decode(context, batch):
        sys.exit("llama_decode fails")
    return [lib.llama_get_logits_ith(context, i)[:width] for i in range(count)]


def perplexity(ids, rows):
    """Of every token but the first."""
    total = 0.0
    for row, token in zip(rows, ids[1:]):
        top = max(row)
        total += top + math.log(sum(math.exp(x - top) for x in row)) - row[token]
    return math.exp(total / (len(ids) - 1))


def main(fixtures, files, names):
    lib, pointer = llama.library(), ctypes.c_void_p
    log = []
    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, pointer)(lambda _, said, __: log.append(said))
    lib.llama_log_set(quiet, None)
    for name in ("llama_model_default_params", "llama_context_default_params"):
        getattr(lib, name).restype = Params
    for name in ("llama_model_load_from_file", "llama_init_from_model"):
        getattr(lib, name).restype = pointer
    lib.llama_batch_init.restype = Batch
    lib.llama_get_logits_ith.restype = ctypes.POINTER(ctypes.c_float)
    lib.llama_backend_init()
    far = []
    for name in names:
        ids, theirs = golden(pathlib.Path(fixtures) / name / "golden.safetensors")
        path = sorted((pathlib.Path(files) / name).glob("*.gguf"))[0]
        found = logits(lib, load(lib, path, len(ids)), ids, len(theirs[0]))
        a, b = perplexity(ids, theirs), perplexity(ids, found)
        most = max(abs(x) for row in theirs for x in row)
        off = max(abs(x - y) for one, two in zip(theirs, found) for x, y in zip(one, two)) / most
        print(f"{name}: {b:.4f}, transformers {a:.4f}; logits within {off:.1e}")
        near = ROUNDED_TOLERANCE if name in ROUNDED else TOLERANCE
        if not (abs(a - b) < near * a and off < near):
            far.append(name)
    if far:
        sys.exit("llama.cpp computes otherwise: " + ", ".join(far))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
