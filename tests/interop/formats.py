"""The formats beside `pack-quantized` with 4 and 8 bits, in the readers that each is for.

    formats.py OPTIMIZE                  writes tests/fixtures/formats.json and its part of docs/READERS.md
    formats.py OPTIMIZE --check          fails if what is found is not what they say
    formats.py OPTIMIZE --only TEXT      prints the verdicts of the kinds with TEXT in their name
    formats.py OPTIMIZE --keep FOLDER    prints all, and leaves the artifacts in FOLDER, an empty one

Artifacts are made of the models of noise of readers.py, each by a recipe. What an artifact means is
computed here from its bytes, by the layout that the format documents, and run dense by transformers in
float32; readers_load.py judges what each reader makes of it. Some are edited afterwards: scales made
negative, columns put into groups out of order. GPTQModel, and transformers with it, are used where
.venv/gptqmodel exists, vLLM where .venv/vllm does.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import readers
import readers_page

HERE = Path(__file__).resolve().parent
TABLE = HERE.parent.parent / "tests/fixtures/formats.json"

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
LINEARS = 'of = ["layers"]'


def rule(bits=4, group=128, symmetric=True, more=LINEARS):
    group = f'"{group}"' if isinstance(group, str) else group
    flag = "true" if symmetric else "false"
    return f'[[output.rule]]\n{more}\nbits = {bits}\ngroup = {group}\nsymmetric = {flag}\nsolver = "rtn"\n'


HEAD = rule(more='of = ["head"]')
EMBEDDING = rule(more='of = ["embedding"]')
NO_O = 'ignore = ["*o_proj"]'
DOWN_8 = rule(8, more='names = ["*down_proj"]')
QKV_8 = rule(8, more='names = ["*q_proj", "*k_proj", "*v_proj"]')


# Name, model, format, rules, edit.
KINDS = [
    *(
        (f"{form}, {bits} bits {'sym' if sym else 'asym'}", "wide-f16", form, rule(bits, symmetric=sym), None)
        for form in ("gptq", "gptq_v2")
        for bits in (2, 3, 4, 8)
        for sym in (True, False)
        # The first version cannot hold a zero point of 0, which these models have.
        if sym or form == "gptq_v2"
    ),
    ("gptq, groups of 32", "wide-f16", "gptq", rule(group=32), None),
    ("gptq, groups of 64", "wide-f16", "gptq", rule(group=64), None),
    ("gptq, per channel", "wide-f16", "gptq", rule(group="channel"), None),
    ("gptq of a bf16 model", "wide-bf16", "gptq", rule(), None),
    ("gptq of an f32 model", "wide", "gptq", rule(), None),
    ("gptq, 8 bits for down_proj", "wide-f16", "gptq", DOWN_8 + rule(), None),
    ("gptq, 8 bits for q, k and v", "wide-f16", "gptq", QKV_8 + rule(), None),
    ("gptq, o_proj left alone", "wide-f16", "gptq", rule(more=NO_O), None),
    ("gptq, head too", "wide-f16", "gptq", HEAD + rule(), None),
    ("gptq of a qwen2 model, with biases", "qwen2", "gptq", rule(), None),
    ("gptq, act-order", "wide-f16", "gptq", rule(group=32), "act-order"),
    ("gptq, a negative scale", "wide-f16", "gptq", rule(), "negative"),
    ("gptq_v2, 8 bits asym, a negative scale", "wide-f16", "gptq_v2", rule(8, symmetric=False), "negative"),
    ("awq, asym", "wide-f16", "awq", rule(symmetric=False), None),
    ("awq, sym", "wide-f16", "awq", rule(), None),
    ("awq, asym, groups of 32", "wide-f16", "awq", rule(group=32, symmetric=False), None),
    ("awq, asym, per channel", "wide-f16", "awq", rule(group="channel", symmetric=False), None),
    ("awq, o_proj left alone", "wide-f16", "awq", rule(symmetric=False, more=NO_O), None),
    ("awq, head too", "wide-f16", "awq", rule(more='of = ["layers", "head"]'), None),
    ("awq of a bf16 model", "wide-bf16", "awq", rule(symmetric=False), None),
    ("awq, asym, a negative scale", "wide-f16", "awq", rule(symmetric=False), "negative"),
    ("int-quantized, per channel", "wide", "int-quantized", rule(8, "channel"), None),
    ("int-quantized, groups of 128", "wide", "int-quantized", rule(8), None),
    ("int-quantized, asym, per channel", "wide", "int-quantized", rule(8, "channel", False), None),
    ("int-quantized, a negative scale", "wide", "int-quantized", rule(8, "channel"), "negative"),
    *(
        (f"compressed-tensors, {bits} bits {'sym' if sym else 'asym'}", "wide", "compressed-tensors",
         rule(bits, symmetric=sym), None)
        for bits in (2, 3, 5, 6, 7)
        for sym in (True, False)
    ),
    ("compressed-tensors, 4 bits, a negative scale", "wide", "compressed-tensors", rule(), "negative"),
    ("compressed-tensors, act-order", "wide", "compressed-tensors", rule(group=32), "act-order"),
    ("compressed-tensors, embedding", "wide", "compressed-tensors", EMBEDDING + rule(), None),
    ("compressed-tensors, embedding and head", "wide", "compressed-tensors", EMBEDDING + HEAD + rule(), None),
]


def stream(words, bits, count):
    """The `count` unsigned fields of `bits` bits that follow each other in little-endian words, along the
    last axis."""
    rows = numpy.ascontiguousarray(words).view(numpy.uint8).reshape(*words.shape[:-1], -1)
    every = numpy.unpackbits(rows, axis=-1, bitorder="little")[..., : bits * count]
    fields = every.reshape(*rows.shape[:-1], count, bits).astype(numpy.int32)
    return (fields << numpy.arange(bits)).sum(-1)


def of_qweight(tensors, module, said):
    """Codes, zero points and scales [out, in], [out, groups] of GPTQ or AWQ, and the group of each column."""
    words, zeros, scales = (tensors[f"{module}.{part}"].numpy() for part in ("qweight", "qzeros", "scales"))
    groups, out = scales.shape
    if said["quant_method"] == "awq":
        def in_order(words):
            nibbles = stream(words, 4, words.shape[1] * 8).reshape(len(words), -1, 8)
            found = numpy.empty_like(nibbles)
            found[..., AWQ_ORDER] = nibbles
            return found.reshape(len(words), -1)

        codes, zero = in_order(words).T, in_order(zeros).T
        index = numpy.arange(codes.shape[1]) // (codes.shape[1] // groups)
        return codes, zero, scales.T, index
    # The width that fills the rows of zero points.
    bits = zeros.shape[1] * 32 // out
    codes = stream(words.T, bits, words.shape[0] * 32 // bits)
    zero = stream(zeros, bits, out).T + (said["checkpoint_format"] == "gptq")
    return codes, zero, scales.T, tensors[f"{module}.g_idx"].numpy()


def of_compressed(tensors, module, bits, symmetric):
    """The same of compressed-tensors."""
    scales = tensors[f"{module}.weight_scale"]
    scales = scales.float().numpy()
    if f"{module}.weight" in tensors:
        codes = tensors[f"{module}.weight"].numpy().astype(numpy.int32)
        zero = numpy.zeros(scales.shape, numpy.int32)
        if not symmetric:
            zero = tensors[f"{module}.weight_zero_point"].numpy().astype(numpy.int32)
    else:
        out, columns = tensors[f"{module}.weight_shape"].tolist()
        codes = stream(tensors[f"{module}.weight_packed"].numpy(), bits, columns)
        zero = numpy.full(scales.shape, 1 << (bits - 1))
        if not symmetric:
            zero = stream(tensors[f"{module}.weight_zero_point"].numpy().T, bits, out).T
    index = tensors.get(f"{module}.weight_g_idx")
    size = codes.shape[1] // scales.shape[1]
    index = numpy.arange(codes.shape[1]) // size if index is None else index.numpy()
    return codes, zero, scales, index


def dense(folder):
    """The configuration of an artifact and the weights that it means, in float32; code x scale is exact."""
    import torch
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    said = config.pop("quantization_config")
    tensors = load_file(folder / "model.safetensors")
    found, taken = {}, set()
    for name in tensors:
        module, _, last = name.rpartition(".")
        if last == "qweight":
            parts = of_qweight(tensors, module, said)
        elif last == "weight_packed" or (last == "weight" and tensors[name].dtype == torch.int8):
            groups = said["config_groups"].values()
            of = {target: group["weights"] for group in groups for target in group["targets"]}
            grid = of.get(module) or of["Linear"]
            parts = of_compressed(tensors, module, grid["num_bits"], grid["symmetric"])
        else:
            continue
        codes, zero, scales, index = parts
        steps = (codes - zero[:, index]).astype(numpy.float32)
        found[f"{module}.weight"] = torch.from_numpy(steps * scales.astype(numpy.float32)[:, index])
        taken |= {f"{module}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx", "weight_packed",
                  "weight", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")}
    rest = {name: tensor.float() for name, tensor in tensors.items() if name not in taken}
    return config, found | rest


def write_means(folder):
    """FOLDER.npz, as readers_load.py reads it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config, weights = dense(folder)
    tokens = numpy.random.default_rng(7).integers(3, config["vocab_size"], readers.TOKENS)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    lacking = model.load_state_dict(weights, strict=False)
    assert not lacking.missing_keys and not lacking.unexpected_keys, lacking
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    numpy.savez(f"{folder}.npz", tokens=tokens, logits=logits, rounded=logits)


def edit(folder, how):
    """Changes what an artifact says."""
    import torch
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors = load_file(file)
    draw = numpy.random.default_rng(3)
    for name in list(tensors):
        module, _, last = name.rpartition(".")
        if how == "negative" and last in ("scales", "weight_scale"):
            signs = torch.from_numpy(draw.choice([-1.0, 1.0], tensors[name].shape))
            tensors[name] = (tensors[name].double() * signs).to(tensors[name].dtype)
        if how == "act-order" and last == "weight_scale":
            columns = int(tensors[f"{module}.weight_shape"][1])
            index = torch.arange(columns, dtype=torch.int32) // (columns // tensors[name].shape[1])
            tensors[f"{module}.weight_g_idx"] = index[torch.from_numpy(draw.permutation(columns))]
        if how == "act-order" and last == "g_idx":
            tensors[name] = tensors[name][torch.from_numpy(draw.permutation(len(tensors[name])))]
    save_file(tensors, file, metadata={"format": "pt"})
    if how == "act-order":
        config = json.loads((folder / "config.json").read_text())
        said = config["quantization_config"]
        if said["quant_method"] == "gptq":
            said["desc_act"] = True
            (folder / "quantize_config.json").write_text(json.dumps(said, indent=1))
        else:
            said["config_groups"]["group_0"]["weights"]["actorder"] = "group"
        (folder / "config.json").write_text(json.dumps(config, indent=1))


def make(optimize, kinds, folder):
    for model in {kind[1] for kind in kinds}:
        readers.make_model(folder / f"of-{model}", **readers.MODELS[model])
    for name, model, form, rules, change in kinds:
        output, recipe = folder / readers.slug(name), folder / f"{readers.slug(name)}.toml"
        recipe.write_text(f'[calibration]\nsamples = 4\n[[output]]\nformat = "{form}"\n{rules}')
        command = [optimize, "--recipe", recipe, folder / f"of-{model}", "-o", output, "--no-gate", "--quiet"]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{name}: {done.stderr}")
        if change:
            edit(output, change)
        write_means(output)


def found_readers(only_here=None):
    """(reader, what it is called, version, python, folder of modules that come first)."""
    for reader, name, version, python, first in readers.readers():
        # The first version with today's layout, and the last.
        if reader == "vllm" or version in ("0.17.1", "0.20.1"):
            yield reader, name, version, python, first
    python = HERE / ".venv/gptqmodel/bin/python"
    ask = "import importlib.metadata as m; print(m.version('gptqmodel'))"
    done = python.exists() and subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
    if not done or done.returncode != 0:
        print("skipped: gptqmodel is not installed in .venv/gptqmodel")
        return
    # transformers reads these formats by GPTQModel too, with kernels that it compiles first: gptq_transformers.py.
    yield "gptqmodel", "GPTQModel, torch kernels", done.stdout.strip(), str(python), None


def is_for(reader, form):
    """Whether a reader is tried on a format: transformers reads each by one library."""
    old = form in ("gptq", "gptq_v2", "awq")
    return reader == "vllm" or (reader == "gptqmodel") == old


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("optimize")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only")
    parser.add_argument("--keep")
    arguments = parser.parse_args()
    kinds = [kind for kind in KINDS if (arguments.only or "") in kind[0]]
    os.environ["GPTQMODEL_CPU_WORKERS"] = "2"
    verdicts = {kind[0]: {} for kind in kinds}
    columns = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(arguments.keep or scratch).resolve()
        make(arguments.optimize, kinds, folder)
        for reader, name, version, python, first in found_readers():
            mine = [kind[0] for kind in kinds if is_for(reader, kind[2])]
            if not mine:
                continue
            for (kind, way), (verdict, why) in readers.read(reader, python, first, folder, mine).items():
                column = f"{name} {version}" + ("" if way == "as it is" else f", {way}")
                columns += [column] if column not in columns else []
                verdicts[kind][column] = [verdict, why]
                if arguments.only or arguments.keep:
                    print(f"{column} | {kind} | {verdict} | {why or ''}", flush=True)
    if arguments.only or arguments.keep:
        return 0
    content = {
        "readers": columns,
        "kinds": [
            {
                "kind": kind[0],
                "verdicts": {c: v[0] for c, v in verdicts[kind[0]].items()},
                "why": {c: v[1] for c, v in verdicts[kind[0]].items() if v[1]},
            }
            for kind in kinds
        ],
    }
    act = readers_page.check_formats if arguments.check else readers_page.write_formats
    return act(TABLE, content)


if __name__ == "__main__":
    sys.exit(main())
