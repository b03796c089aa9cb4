"""The type that llama-quantize gives each tensor, of made-up models: gguf_mixes.py LLAMA_QUANTIZE

Prints a line for each model, mix, whether there is an imatrix (or both), and kind of tensor: the types, each
with the layers that get it. tests/fixtures/gguf/mixes.txt is what llama.cpp 0c1e5709 of 2026-10-01 says. The models have headers and no data: nothing is quantized."""

import pathlib
import re
import subprocess
import sys
import tempfile

import llama

MIXES = (
    "q2_k q2_k_s q3_k_s q3_k_m q3_k_l q4_0 q4_1 q4_k_s q4_k_m q5_0 q5_1 q5_k_s q5_k_m q6_k q8_0 iq4_nl iq4_xs "
    "mxfp4_moe"
).split()

# Name: architecture, layers, width, feed-forward, heads, heads of keys, experts, whether it is tied.
MODELS = {
    "llama8b": ("llama", 32, 4096, 14336, 32, 8, 0, False),
    "llama70b": ("llama", 80, 512, 1792, 8, 1, 0, False),
    "qwen3": ("qwen3", 28, 1024, 3072, 16, 8, 0, True),
    "mixtral": ("llama", 32, 1024, 3584, 16, 4, 8, False),
    "narrow": ("llama", 5, 576, 1536, 9, 3, 0, True),
    "odd": ("llama", 9, 80, 200, 5, 5, 0, False),
}


def tensors(arch, layers, width, wide, heads, kv, experts, tied):
    head = width // heads
    yield "token_embd.weight", [1000, width]
    yield "output_norm.weight", [width]
    if not tied:
        yield "output.weight", [1000, width]
    for i in range(layers):
        yield f"blk.{i}.attn_norm.weight", [width]
        yield f"blk.{i}.ffn_norm.weight", [width]
        yield f"blk.{i}.attn_q.weight", [width, width]
        yield f"blk.{i}.attn_k.weight", [kv * head, width]
        yield f"blk.{i}.attn_v.weight", [kv * head, width]
        yield f"blk.{i}.attn_output.weight", [width, width]
        stack, end = ([experts], "_exps.weight") if experts else ([], ".weight")
        yield f"blk.{i}.ffn_gate{end}", [*stack, wide, width]
        yield f"blk.{i}.ffn_up{end}", [*stack, wide, width]
        yield f"blk.{i}.ffn_down{end}", [*stack, width, wide]
        if experts:
            yield f"blk.{i}.ffn_gate_inp.weight", [experts, width]


def write(path, model):
    arch, layers, width, wide, heads, kv, experts, _ = model
    count = lambda name, value: (f"{arch}.{name}", "u32", value)
    keys = [
        ("general.architecture", "str", arch), ("general.file_type", "u32", 1),
        count("block_count", layers), count("context_length", 512), count("embedding_length", width),
        count("feed_forward_length", wide), count("attention.head_count", heads),
        count("attention.head_count_kv", kv), count("rope.dimension_count", width // heads),
        (f"{arch}.attention.layer_norm_rms_epsilon", "f32", 1e-5), ("tokenizer.ggml.model", "str", "no_vocab"),
        count("vocab_size", 1000),
    ]
    if experts:
        keys += [count("expert_count", experts), count("expert_used_count", 2)]
    llama.write_sparse(path, keys, [(name, "F16", shape) for name, shape in tensors(*model)])


def types(quantize, path, mix, imatrix):
    """By kind of tensor: the layers of each type."""
    with_it = ["--imatrix", str(imatrix)] if imatrix else []
    out = path.with_suffix(".out")
    said = subprocess.run(
        [quantize, *with_it, "--dry-run", str(path), str(out), mix.upper()],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    if said.returncode:
        sys.exit(said.stdout[-2000:])
    found = {}
    line = re.compile(r"\] +(\S+) +- \[.*?type = +(\w+), size =.*?MiB(?: -> +\S+ MiB \((\w+)\))?$", re.M)
    for name, was, to in line.findall(said.stdout):
        if "norm" not in name and "inp" not in name:
            layer, part = re.match(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name).groups()
            found.setdefault(part, {}).setdefault((to or was).lower(), []).append(int(layer or 0))
    return found


def shown(kinds):
    """Types, each with its layers; one that all layers get stands alone."""
    if len(kinds) == 1:
        return next(iter(kinds))
    return " ".join(f"{kind}={','.join(map(str, layers))}" for kind, layers in sorted(kinds.items()))


def main(quantize):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        imatrix = folder / "imatrix.dat"
        llama.write_legacy_imatrix(imatrix, {"none.weight": [1.0]})
        for name, model in MODELS.items():
            path = folder / f"{name}.gguf"
            write(path, model)
            for mix in MIXES:
                plain, weighted = (types(quantize, path, mix, given) for given in (None, imatrix))
                for part in sorted(plain):
                    if plain[part] == weighted[part]:
                        print(name, mix, "both", part, shown(plain[part]))
                        continue
                    print(name, mix, "plain", part, shown(plain[part]))
                    print(name, mix, "weighted", part, shown(weighted[part]))
            path.unlink()


if __name__ == "__main__":
    main(*sys.argv[1:])
