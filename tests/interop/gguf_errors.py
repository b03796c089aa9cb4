"""The relative squared error of ggml's quantizer on noise that a test makes too, type by type, without
and with importance: passes/tests/suite/gguf.rs. Run with xllamacpp (requirements-llama.txt)."""

import array
import ctypes

import llama

WIDTH, ROWS = 256, 16
KINDS = "Q4_0 Q5_0 Q8_0 Q4_1 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4 NVFP4".split()


def noise(state, count):
    values = []
    for _ in range(count):
        state = (state * 1_664_525 + 1_013_904_223) % 2**32
        values.append(((state >> 8) / 2**23 - 1.0) ** 3)
    return (ctypes.c_float * count)(*values)


def main():
    lib, values = llama.library(), noise(3, ROWS * WIDTH)
    weights = [30.0 if i % 5 == 0 else 1.0 for i in range(WIDTH)]
    for kind in KINDS:
        errors = []
        for by in (None, (ctypes.c_float * WIDTH)(*weights)):
            blocks = llama.quantized(lib, kind, values, ROWS, WIDTH, by)
            read = array.array("f", llama.dequantized(lib, kind, blocks, ROWS * WIDTH))
            weigh = weights if by else [1.0] * WIDTH
            pairs = zip(values, read)
            error = sum((v - r) ** 2 * weigh[i % WIDTH] for i, (v, r) in enumerate(pairs))
            of = sum(v * v * weigh[i % WIDTH] for i, v in enumerate(values))
            errors.append(error / of)
        print(kind, *(f"{error:.6e}" for error in errors))


if __name__ == "__main__":
    main()
