#!/usr/bin/env python3
"""Makes tests/fixtures/qweight/codec.safetensors: weights packed by GPTQModel, as GPTQ and AWQ.

It holds, for each case NAME (method, bits, symmetry, what shares a scale), the codes (I8) and zero
points (I8), 2^(bits - 1) taken off both, the scales [out, groups] and the group of each column that
went in, and the tensors that GPTQModel's own packers made of them: qweight, qzeros (as gptq_v2 has
them), qzeros_v1 (after GPTQModel's conversion), scales and g_idx. `NAME.dense` is the float16 that
its kernel reads them back as.

    make_qweight_goldens.py            writes the fixture
    make_qweight_goldens.py --check    remakes it and compares every tensor, byte for byte
"""

import argparse
import sys
from pathlib import Path

import numpy
import torch
from gptqmodel import QuantizeConfig
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module
from safetensors.torch import load_file, save_file

FILE = Path(__file__).resolve().parent.parent / "fixtures" / "qweight" / "codec.safetensors"
OUT, WIDTH = 32, 64


def cases():
    for bits in (2, 3, 4, 8):
        yield "gptq", bits, True, 32, False
        yield "gptq", bits, False, 32, False
        yield "gptq", bits, True, -1, False
        yield "gptq", bits, False, 32, True
    yield "awq", 4, True, 32, False
    yield "awq", 4, False, 32, False
    yield "awq", 4, False, -1, False


def made():
    tensors = {}
    for method, bits, symmetric, group, ordered in cases():
        span = "channel" if group < 0 else f"g{group}"
        name = f"{method}-{bits}-{'sym' if symmetric else 'asym'}-{span}{'-order' if ordered else ''}"
        random = numpy.random.default_rng(list(name.encode()))
        size = WIDTH if group < 0 else group
        groups, middle = WIDTH // size, 1 << (bits - 1)
        codes = torch.from_numpy(random.integers(0, 2 * middle, (OUT, WIDTH))).float()
        # The first version cannot hold 0.
        zeros = torch.full((OUT, groups), float(middle))
        if not symmetric:
            zeros = torch.from_numpy(random.integers(1, 2 * middle, (OUT, groups))).float()
        # Powers of two, so that a value on the grid is packed as its code exactly.
        scales = torch.from_numpy(numpy.exp2(random.integers(-8, -1, (OUT, groups)))).float()
        g_idx = torch.arange(WIDTH, dtype=torch.int32) // size
        if ordered:
            g_idx = g_idx[torch.from_numpy(random.permutation(WIDTH))]
        linear = torch.nn.Linear(WIDTH, OUT, bias=False)
        linear.weight.data = (codes - zeros[:, g_idx.long()]) * scales[:, g_idx.long()]
        kind = TorchLinear if method == "gptq" else AwqTorchLinear
        module = kind(
            bits=bits,
            group_size=group,
            sym=symmetric,
            desc_act=ordered,
            in_features=WIDTH,
            out_features=OUT,
            bias=False,
            register_buffers=False,
        )
        pack = module.pack_original if method == "gptq" else module.pack
        pack(linear, scales, zeros, g_idx)
        parts = {"qweight": module.qweight, "qzeros": module.qzeros, "scales": module.scales}
        if method == "gptq":
            parts["g_idx"] = module.g_idx
            parts = {key: value.clone() for key, value in parts.items()}
            convert_gptq_v2_to_v1_format_module(module, QuantizeConfig(bits=bits))
            parts["qzeros_v1"] = module.qzeros
        parts["dense"] = linear.weight.data.half()
        assert torch.equal(parts["dense"].float(), linear.weight.data)
        parts["codes"] = (codes - middle).to(torch.int8)
        parts["zeros"] = (zeros - middle).to(torch.int8)
        parts["groups"] = g_idx
        tensors |= {f"{name}.{key}": value.detach().clone().contiguous() for key, value in parts.items()}
    return tensors


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    tensors = made()
    if not parser.parse_args().check:
        FILE.parent.mkdir(exist_ok=True)
        save_file(tensors, FILE)
        return 0
    committed = load_file(FILE)
    wrong = [n for n in tensors.keys() | committed.keys() if n not in tensors or n not in committed
             or not torch.equal(tensors[n], committed[n])]
    print(f"not as committed: {sorted(wrong)}" if wrong else f"{len(tensors)} tensors are as committed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
