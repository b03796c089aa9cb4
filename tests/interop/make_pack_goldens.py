#!/usr/bin/env python3
"""Makes tests/fixtures/pack: weights packed by compressed-tensors, and a checkpoint of them.

codec.safetensors holds, for each case NAME (bits, symmetry, what shares a scale, scale dtype), the
codes (I8), the zero points (I8) and scales that went in, the tensors that compressed-tensors made
of them, and for some cases what it reads them back as, in float32 (`NAME.dense`).

Each folder is a checkpoint written by compressed-tensors and transformers: mixed/ in two groups of
different widths, asymmetric/ in one. golden.safetensors in it holds `input_ids`, the `logits` of an
eager float32 forward, and the weights as they were read back. quantization_config.json is what this
project writes for the same weights: --check loads the checkpoint with that configuration too.

    make_pack_goldens.py            writes the fixtures
    make_pack_goldens.py --check    remakes them elsewhere and compares every tensor, byte for byte
                                    (logits to a tolerance)
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy
import torch
import transformers
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "pack"
TOLERANCE = 1e-5
ROWS = 9

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# Elements a row for each span: groups of so many elements, or None for a channel. A channel of 75
# elements fills no whole word.
WIDTHS = {32: 96, 64: 128, 128: 256, None: 75}


def cases():
    for bits in (4, 8):
        for symmetric in (True, False):
            for (group, _), dtype in zip(WIDTHS.items(), ("f32", "f16", "bf16", "bf16")):
                yield bits, symmetric, group, dtype
    for bits in (2, 3, 5, 6, 7):
        yield bits, False, None, "f16"


def name_of(bits, symmetric, group, dtype):
    span = "channel" if group is None else f"g{group}"
    return f"int{bits}-{'sym' if symmetric else 'asym'}-{span}-{dtype}"


def arguments(bits, symmetric, group):
    strategy = "channel" if group is None else "group"
    return QuantizationArgs(
        num_bits=bits, symmetric=symmetric, strategy=strategy, group_size=group
    )


def codec():
    """Every case: what went in, what compressed-tensors made of it, what it reads back."""
    tensors = {}
    for bits, symmetric, group, dtype in cases():
        name, width = name_of(bits, symmetric, group, dtype), WIDTHS[group]
        random = numpy.random.default_rng(list(name.encode()))
        low, high = -(1 << (bits - 1)), 1 << (bits - 1)
        groups = 1 if group is None else width // group
        codes = torch.from_numpy(random.integers(low, high, (ROWS, width), dtype=numpy.int8))
        # The extremes are there whatever the draw.
        codes[0, 0], codes[-1, -1] = low, high - 1
        # Powers of two, so that quantizing a value on the grid gives its code back exactly.
        exponents = random.integers(-12, -2, (ROWS, groups))
        scale = torch.from_numpy(numpy.exp2(exponents).astype(numpy.float32))
        zero = torch.zeros((ROWS, groups), dtype=torch.int8)
        if not symmetric:
            zero = torch.from_numpy(random.integers(low, high, (ROWS, groups), dtype=numpy.int8))
        each = width if group is None else group
        offsets = codes.float() - zero.float().repeat_interleave(each, 1)
        weight = offsets * scale.repeat_interleave(each, 1)
        scheme = QuantizationScheme(targets=["Linear"], weights=arguments(bits, symmetric, group))
        state = {
            "weight": weight,
            "weight_scale": scale.to(DTYPES[dtype]),
            "weight_zero_point": zero,
        }
        packed = PackedQuantizationCompressor.compress(dict(state), scheme)
        wide = {**packed, "weight_scale": packed["weight_scale"].float()}
        dense = PackedQuantizationCompressor.decompress(wide, scheme)["weight"]
        assert torch.equal(dense, weight), name
        tensors[f"{name}.codes"] = codes
        if not symmetric:
            tensors[f"{name}.zeros"] = zero
        if group in (32, None) and not symmetric:
            tensors[f"{name}.dense"] = dense.contiguous()
        tensors.update({f"{name}.{key}": value.contiguous() for key, value in packed.items()})
    return tensors


ATTENTION = [f"model.layers.0.self_attn.{x}_proj" for x in "qkvo"]
FFN = [f"model.layers.0.mlp.{x}_proj" for x in ("gate", "up", "down")]

# The groups of each checkpoint, and whether transformers is to dequantize while it loads: that path
# reads every linear by the first group, the other cannot hold packed zero points.
FOLDERS = {
    "mixed": ([(ATTENTION, arguments(4, True, 8)), (FFN, arguments(8, True, None))], False),
    "asymmetric": ([(["Linear"], arguments(4, False, 8))], True),
}


def tiny(name):
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    random = numpy.random.default_rng(list(name.encode()))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for key, parameter in model.named_parameters():
        values = random.standard_normal(tuple(parameter.shape))
        values = 1.0 + 0.3 * values if "norm" in key else 0.35 * values
        parameter.data.copy_(torch.from_numpy(values.astype(numpy.float32)))
    return model, random


def fit(module):
    """Scales and zero points by the range of each group."""
    args = module.quantization_scheme.weights
    groups = module.weight_scale.shape[1]
    values = module.weight.detach().reshape(module.weight.shape[0], groups, -1)
    low, high = values.amin(-1).clamp(max=0), values.amax(-1).clamp(min=0)
    steps = (1 << args.num_bits) - 1
    if args.symmetric:
        scale = torch.maximum(-low, high) / (steps / 2)
    else:
        scale = (high - low) / steps
        zero = torch.round(-(1 << (args.num_bits - 1)) - low / scale)
        module.weight_zero_point.data.copy_(zero.to(torch.int8))
    module.weight_scale.data.copy_(scale)


def forward(name, folder, ids):
    """The logits, and the weights of the linears as they were read back."""
    # A configuration of None would mean that the checkpoint is dense.
    how = {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    model, loaded = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
        **(how if FOLDERS[name][1] else {}),
    )
    wrong = {key: value for key, value in loaded.items() if value}
    if wrong:
        raise RuntimeError(f"{folder} was not loaded whole: {wrong}")
    model.eval()
    with torch.no_grad():
        logits = model(ids.unsqueeze(0), use_cache=False).logits[0].contiguous()
    # The first forward has made every weight dense.
    linears = {
        f"{module_name}.weight": module.weight.detach().contiguous()
        for module_name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module_name != "lm_head"
    }
    return {"logits": logits, **linears}


def make(name, folder):
    """Writes the checkpoint `name`, and returns what it is read back as."""
    model, random = tiny(name)
    schemes = [QuantizationScheme(targets=t, weights=w) for t, w in FOLDERS[name][0]]
    groups = {f"group_{i}": scheme for i, scheme in enumerate(schemes)}
    config = QuantizationConfig(config_groups=groups, ignore=["lm_head"])
    apply_quantization_config(model, config, show_progress=False)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            fit(module)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    ids = torch.from_numpy(random.integers(0, 31, 40, dtype=numpy.int64))
    return {"input_ids": ids, **forward(name, folder, ids)}


def same(name, found, expected):
    """Whether two sets of tensors are equal: all but logits byte for byte."""
    faults = sorted(set(found) ^ set(expected))
    for key in set(found) & set(expected):
        a, b = found[key], expected[key]
        if a.dtype != b.dtype or a.shape != b.shape:
            faults.append(key)
        elif key == "logits":
            if (a - b).abs().max() > TOLERANCE * b.abs().max():
                faults.append(key)
        elif not torch.equal(a, b):
            faults.append(key)
    print(f"{'FAIL' if faults else 'ok'} {name}", *faults[:5])
    return not faults


def check_folder(name, scratch):
    committed, remade, ours = FIXTURES / name, scratch / f"{name}-a", scratch / f"{name}-b"
    golden = load_file(committed / "golden.safetensors")
    good = same(f"{name}, remade", make(name, remade), golden)
    files = [load_file(folder / "model.safetensors") for folder in (remade, committed)]
    good &= same(f"{name}, stored", *files)
    # What this project says of the same weights means the same to transformers.
    shutil.copytree(committed, ours)
    said = json.loads((committed / "quantization_config.json").read_text())
    known = {key: said[key] for key in QuantizationConfig.model_fields if key in said}
    QuantizationConfig.model_validate(known)
    config = json.loads((ours / "config.json").read_text())
    config["quantization_config"] = said
    (ours / "config.json").write_text(json.dumps(config))
    read = {"input_ids": golden["input_ids"], **forward(name, ours, golden["input_ids"])}
    return good & same(f"{name}, by our quantization_config", read, golden)


def check():
    good = same("codec", codec(), load_file(FIXTURES / "codec.safetensors"))
    with tempfile.TemporaryDirectory() as scratch:
        for name in FOLDERS:
            good &= check_folder(name, Path(scratch))
    return 0 if good else 1


def write():
    FIXTURES.mkdir(parents=True, exist_ok=True)
    save_file(codec(), FIXTURES / "codec.safetensors")
    for name in FOLDERS:
        golden = make(name, FIXTURES / name)
        save_file(golden, FIXTURES / name / "golden.safetensors")
    for path in FIXTURES.rglob("*.safetensors"):
        path.chmod(0o644)
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return check() if arguments.check else write()


if __name__ == "__main__":
    sys.exit(main())
