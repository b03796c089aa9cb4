"""Makes crates/checkpoint/src/gguf/lattices.bin: the points that the codes of IQ1, IQ2 and IQ3 stand for, as
llama.cpp's reader (xllamacpp, requirements-llama.txt) gives them for blocks that name each once.

A point is a little-endian word of 16 bits: eight elements of two bits, or four of three, from the lowest bits on;
each is its place among the values of its table. make_lattices.py OUT.bin"""

import array
import struct
import sys

import llama


def half(value):
    return struct.pack("<e", value)


def iq2_xxs(points):
    return half(8.0) + b"".join(bytes(points[i : i + 4]) + bytes(4) for i in range(0, 32, 4))


def iq2_xs(points):
    return half(8.0) + struct.pack("<32H", *points) + bytes(8)


def iq2_s(points):
    low = bytes(point & 255 for point in points)
    high = [sum((points[i + l] >> 8) << 2 * l for l in range(4)) for i in range(0, 32, 4)]
    return half(8.0) + low + bytes(32) + bytes(high) + bytes(8)


def iq3_xxs(points):
    return half(4.0) + bytes(points) + bytes(32)


def iq3_s(points):
    low = bytes(point & 255 for point in points)
    high = [sum((points[i + l] >> 8) << l for l in range(8)) for i in range(0, 64, 8)]
    return half(1.0) + low + bytes(high) + bytes(36)


def iq1_s(points):
    low = bytes(point & 255 for point in points)
    high = [sum((points[i + l] >> 8) << 3 * l for l in range(4)) for i in range(0, 32, 4)]
    return half(8.0) + low + struct.pack("<8H", *high)


# Type, points, elements of one, what makes a block of so many, and the values. IQ1's are eighths, moved by one.
TABLES = [
    ("IQ2_XXS", 256, 8, iq2_xxs, [8, 25, 43]),
    ("IQ2_XS", 512, 8, iq2_xs, [8, 25, 43]),
    ("IQ2_S", 1024, 8, iq2_s, [8, 25, 43]),
    ("IQ3_XXS", 256, 4, iq3_xxs, [4, 12, 20, 28, 36, 44, 52, 62]),
    ("IQ3_S", 512, 4, iq3_s, [1, 3, 5, 7, 9, 11, 13, 15]),
    ("IQ1_S", 2048, 8, iq1_s, [-7, 1, 9]),
]


def main(path):
    lib, words = llama.library(), []
    for kind, points, size, block, values in TABLES:
        step = 256 // size
        for first in range(0, points, step):
            made = block(list(range(first, first + step)))
            read = array.array("f", llama.dequantized(lib, kind, made, 256))
            for at in range(0, 256, size):
                places = [values.index(int(value)) for value in read[at : at + size]]
                bits = 2 if size == 8 else 3
                words.append(sum(place << bits * j for j, place in enumerate(places)))
    with open(path, "wb") as file:
        file.write(struct.pack(f"<{len(words)}H", *words))


if __name__ == "__main__":
    main(sys.argv[1])
