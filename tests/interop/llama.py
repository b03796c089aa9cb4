"""llama.cpp's own library, of the Python module xllamacpp, by its C functions."""

import ctypes
import importlib.util
import pathlib

TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8,
    "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "IQ2_XXS": 16, "IQ2_XS": 17, "IQ3_XXS": 18,
    "IQ1_S": 19, "IQ4_NL": 20, "IQ3_S": 21, "IQ2_S": 22, "IQ4_XS": 23, "IQ1_M": 29, "BF16": 30, "TQ1_0": 34,
    "TQ2_0": 35, "MXFP4": 39, "NVFP4": 40,
}
# Elements and bytes of a block.
BLOCKS = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22),
    "Q5_1": (32, 24), "Q8_0": (32, 34), "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144),
    "Q5_K": (256, 176), "Q6_K": (256, 210), "IQ4_NL": (32, 18), "IQ4_XS": (256, 136), "MXFP4": (32, 17),
    "NVFP4": (64, 36), "IQ1_S": (256, 50), "IQ1_M": (256, 56), "IQ2_XXS": (256, 66), "IQ2_XS": (256, 74),
    "IQ2_S": (256, 82), "IQ3_XXS": (256, 98), "IQ3_S": (256, 110), "TQ1_0": (256, 54), "TQ2_0": (256, 66),
}


def library():
    """The shared library, loaded."""
    folder = pathlib.Path(importlib.util.find_spec("xllamacpp").origin).parent
    lib = ctypes.CDLL(str(next(folder.glob("*.so"))))
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return lib


def quantized(lib, kind, values, rows, width, importance=None):
    """Rows of 32-bit floats (a ctypes array) as blocks of ggml's own quantizer; importance, likewise, has
    one for each column."""
    elements, size = BLOCKS[kind]
    if kind == "F32":
        return bytes(values)
    out = ctypes.create_string_buffer(rows * width // elements * size)
    lib.ggml_quantize_chunk(TYPES[kind], values, out, 0, rows, width, importance)
    return out.raw


def dequantized(lib, kind, blocks, count):
    """The floats that ggml reads blocks as: its plain C, not the vectors of a CPU."""
    out = (ctypes.c_float * count)()
    function = getattr(lib, "dequantize_row_" + kind.lower().replace("_k", "_K"))
    function(ctypes.c_char_p(blocks), out, ctypes.c_int64(count))
    return bytes(out)


def write(path, keys, tensors, alignment=32):
    """A GGUF file, version 3: keys are (name, kind, value), tensors (name, kind, shape, bytes)."""
    import struct

    plain = {"u8": (0, "<B"), "u32": (4, "<I"), "i32": (5, "<i"), "f32": (6, "<f"), "bool": (7, "<?")}

    def text(value):
        value = value.encode()
        return struct.pack("<Q", len(value)) + value

    def said(kind, value):
        if kind == "str":
            return struct.pack("<I", 8) + text(value)
        if kind.startswith("["):
            inner = kind.strip("[]")
            number = 8 if inner == "str" else plain[inner][0]
            items = b"".join(text(v) if inner == "str" else struct.pack(plain[inner][1], v) for v in value)
            return struct.pack("<IIQ", 9, number, len(value)) + items
        number, form = plain[kind]
        return struct.pack("<I", number) + struct.pack(form, value)

    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    for name, kind, value in keys:
        head += text(name) + said(kind, value)
    at = 0
    for name, kind, shape, data in tensors:
        head += text(name) + struct.pack("<I", len(shape))
        head += b"".join(struct.pack("<Q", n) for n in reversed(shape))
        head += struct.pack("<IQ", TYPES[kind], at)
        at += -(-len(data) // alignment) * alignment
    with open(path, "wb") as file:
        file.write(head + bytes(-len(head) % alignment))
        for *_, data in tensors:
            file.write(data + bytes(-len(data) % alignment))


def write_sparse(path, keys, tensors, alignment=32):
    """A GGUF file whose data, which nobody reads, are a hole: tensors are (name, kind, shape)."""
    import math
    import os

    sizes = [math.prod(shape) // BLOCKS[kind][0] * BLOCKS[kind][1] for _, kind, shape in tensors]
    ends = [-(-size // alignment) * alignment for size in sizes]
    write(path, keys, [(*tensor, Hole(end)) for tensor, end in zip(tensors, ends)], alignment)
    os.truncate(path, os.path.getsize(path) + sum(ends))


class Hole(bytes):
    """No bytes, which count for some."""

    def __new__(cls, length):
        hole = super().__new__(cls)
        hole.length = length
        return hole

    def __len__(self):
        return self.length


def write_legacy_imatrix(path, entries):
    """An importance matrix in llama.cpp's older form: by name, what each column is worth."""
    import struct

    with open(path, "wb") as file:
        file.write(struct.pack("<i", len(entries)))
        for name, values in entries.items():
            raw = name.encode()
            file.write(struct.pack("<i", len(raw)) + raw + struct.pack("<ii", 1, len(values)))
            file.write(struct.pack(f"<{len(values)}f", *values))
        file.write(struct.pack("<i", 1) + struct.pack("<i", 4) + b"none")


def config(folder):
    """A folder's config.json."""
    import json

    return json.loads((pathlib.Path(folder) / "config.json").read_text())


def read(path):
    """The tensors of a GGUF file: (name, kind, shape, bytes)."""
    import math
    import struct

    data, names = pathlib.Path(path).read_bytes(), {number: name for name, number in TYPES.items()}
    at = 8

    def take(form):
        nonlocal at
        value = struct.unpack_from("<" + form, data, at)[0]
        at += struct.calcsize("<" + form)
        return value

    def text():
        nonlocal at
        length = take("Q")
        at += length
        return data[at - length : at].decode()

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            inner = take("I")
            return [value(inner) for _ in range(take("Q"))]
        return take("BbHhIif?__Qqd"[kind])

    count, keys, alignment = take("Q"), take("Q"), 32
    for _ in range(keys):
        key = text()
        said = value(take("I"))
        alignment = said if key == "general.alignment" else alignment
    said = []
    for _ in range(count):
        name = text()
        shape = [take("Q") for _ in range(take("I"))][::-1]
        said.append((name, names[take("I")], shape, take("Q")))
    begin = -(-at // alignment) * alignment
    for name, kind, shape, offset in said:
        elements, size = BLOCKS[kind]
        length = math.prod(shape) // elements * size
        yield name, kind, shape, data[begin + offset : begin + offset + length]
