#!/usr/bin/env python3
"""Makes the tiny checkpoints of tests/fixtures/families and their logits by transformers.

Each case is a folder: a checkpoint written by save_pretrained from seeded random weights, and
golden.safetensors with `input_ids` (I64 [T]) and `logits` (F32 [T, vocab]) of an eager float32
forward on one thread. Weights are wide and norms away from one, so that the logits are not flat.

    make_family_goldens.py            writes the fixtures and VERSIONS.json
    make_family_goldens.py --check    remakes them elsewhere, forwards the committed checkpoints,
                                      and holds both against the committed logits
"""

import argparse
import json
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import numpy
import safetensors
import safetensors.torch
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3Config,
)

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "families"
TOLERANCE = 1e-5

BASE = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_MSCALE = {
    **YARN,
    "beta_fast": 16.0,
    "beta_slow": 0.5,
    "mscale": 1.5,
    "mscale_all_dim": 0.7,
    "truncate": False,
}


def case(
    config,
    text=40,
    std=0.35,
    dtype=torch.float32,
    shard="1GB",
    after=None,
    numbers=None,
    as_held=False,
    **changes,
):
    """A checkpoint: configuration class, length of the text, and what is done to it once saved.

    `numbers` is another case, whose numbers it has; `as_held` saves it as transformers holds it.
    """
    return {
        "config": config,
        "changes": changes,
        "text": text,
        "std": std,
        "dtype": dtype,
        "shard": shard,
        "after": after,
        "numbers": numbers,
        "as_held": as_held,
    }


def edit_config(folder, edit):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config, indent=2) + "\n")


def old_spelling(kind):
    """Moves `rope_parameters` to `rope_theta` and `rope_scaling`, whose type is spelled `kind`."""

    def edit(config):
        scaling = config.pop("rope_parameters")
        config["rope_theta"] = scaling.pop("rope_theta")
        scaling[kind] = scaling.pop("rope_type")
        config["rope_scaling"] = None if scaling == {kind: "default"} else scaling
        config["torch_dtype"] = config.pop("dtype")

    return lambda folder: edit_config(folder, edit)


def claim_tied(folder):
    """The configuration says tied while another head is stored: transformers uses the head."""
    edit_config(folder, lambda config: config.update(tie_word_embeddings=True))


def drop_layer_types(folder):
    """Leaves the windows to max_window_layers alone, as configurations of older versions do."""
    edit_config(folder, lambda config: config.pop("layer_types"))


def mix_dtypes(folder):
    """Stores norms as F32, the embedding as F16 and the rest as BF16."""
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    for name, tensor in tensors.items():
        if "norm" not in name:
            tensors[name] = tensor.to(torch.float16 if "embed" in name else torch.bfloat16)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


CASES = {
    "llama-plain": case(LlamaConfig, num_key_value_heads=4, vocab_size=97),
    "llama-head-dim": case(
        LlamaConfig, num_attention_heads=3, num_key_value_heads=1, head_dim=10, text=43
    ),
    "llama-bias": case(LlamaConfig, attention_bias=True, mlp_bias=True),
    "llama-gqa": case(
        LlamaConfig,
        hidden_size=36,
        num_attention_heads=6,
        num_key_value_heads=3,
        num_hidden_layers=1,
        intermediate_size=33,
        text=51,
    ),
    "llama-three-layers": case(LlamaConfig, num_hidden_layers=3, intermediate_size=21),
    "llama-one-layer": case(LlamaConfig, num_hidden_layers=1, vocab_size=131),
    "llama-tied": case(LlamaConfig, tie_word_embeddings=True, vocab_size=97),
    "llama-tied-head-stored": case(LlamaConfig, num_hidden_layers=1, after=claim_tied),
    "llama-bf16": case(LlamaConfig, dtype=torch.bfloat16, vocab_size=97),
    "llama-f16": case(LlamaConfig, dtype=torch.float16, vocab_size=97),
    "llama-mixed-dtypes": case(LlamaConfig, after=mix_dtypes),
    "llama-shards": case(LlamaConfig, shard="10KB"),
    "llama-old-spelling": case(LlamaConfig, num_hidden_layers=1, after=old_spelling("type")),
    "llama-linear": case(
        LlamaConfig,
        rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5},
        max_position_embeddings=32,
        text=70,
    ),
    "llama-linear-old-spelling": case(
        LlamaConfig,
        rope_parameters={"rope_type": "linear", "rope_theta": 1000.0, "factor": 3.0},
        max_position_embeddings=32,
        num_hidden_layers=1,
        text=70,
        after=old_spelling("type"),
    ),
    "llama-llama3": case(LlamaConfig, rope_parameters=LLAMA3, head_dim=12, text=90),
    "llama-llama3-old-spelling": case(
        LlamaConfig,
        rope_parameters=LLAMA3,
        head_dim=12,
        num_hidden_layers=1,
        text=90,
        after=old_spelling("rope_type"),
    ),
    "llama-yarn": case(LlamaConfig, rope_parameters=YARN, head_dim=12, text=80),
    "llama-yarn-mscale-old-spelling": case(
        LlamaConfig,
        rope_parameters=YARN_MSCALE,
        head_dim=12,
        num_hidden_layers=1,
        text=80,
        after=old_spelling("type"),
    ),
    "mistral-window": case(MistralConfig, sliding_window=7, text=48),
    "mistral-no-window": case(
        MistralConfig, sliding_window=None, num_hidden_layers=1, text=48, after=old_spelling("type")
    ),
    "mixtral": case(MixtralConfig, num_local_experts=4, num_experts_per_tok=2, text=48),
    "mixtral-stacked": case(
        MixtralConfig,
        num_local_experts=4,
        num_experts_per_tok=2,
        text=48,
        numbers="mixtral",
        as_held=True,
    ),
    "mixtral-window": case(
        MixtralConfig,
        num_local_experts=3,
        num_experts_per_tok=1,
        sliding_window=7,
        num_hidden_layers=1,
        text=48,
    ),
    "qwen2": case(Qwen2Config, num_key_value_heads=1, text=44),
    "qwen2-windows": case(
        Qwen2Config,
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=1,
        num_hidden_layers=3,
        intermediate_size=18,
        text=48,
        after=drop_layer_types,
    ),
    "qwen2-layer-types": case(
        Qwen2Config,
        use_sliding_window=True,
        sliding_window=9,
        layer_types=["sliding_attention", "full_attention"],
        text=48,
    ),
    "qwen3": case(Qwen3Config, head_dim=14, num_attention_heads=3, num_key_value_heads=1, text=44),
    "qwen3-bias": case(Qwen3Config, head_dim=8, attention_bias=True, num_hidden_layers=1),
    "qwen3-tied-bf16": case(
        Qwen3Config, head_dim=16, tie_word_embeddings=True, dtype=torch.bfloat16, vocab_size=131
    ),
    "qwen3-windows": case(
        Qwen3Config,
        head_dim=8,
        use_sliding_window=True,
        sliding_window=6,
        max_window_layers=1,
        text=48,
        after=drop_layer_types,
    ),
}


def versions():
    return {
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "safetensors": safetensors.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def fill(model, std, random):
    """Seeded weights from numpy, whose generator is stable over versions."""
    for name, parameter in model.named_parameters():
        values = random.standard_normal(tuple(parameter.shape))
        values = 1.0 + 0.3 * values if "norm" in name else std * values
        parameter.data.copy_(torch.from_numpy(values.astype(numpy.float32)))


def forward(folder, ids):
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    model.float().eval()
    with torch.no_grad():
        return model(ids.unsqueeze(0), use_cache=False).logits[0].contiguous()


def make(name, folder):
    """Writes the case `name` into `folder` and returns its logits."""
    spec = CASES[name]
    random = numpy.random.default_rng(list((spec["numbers"] or name).encode()))
    config = spec["config"](**json.loads(json.dumps({**BASE, **spec["changes"]})))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fill(model, spec["std"], random)
    model.tie_weights()
    model.to(spec["dtype"]).save_pretrained(
        folder, max_shard_size=spec["shard"], save_original_format=not spec["as_held"]
    )
    if spec["after"]:
        spec["after"](folder)
    ids = torch.from_numpy(random.integers(0, config.vocab_size, spec["text"], dtype=numpy.int64))
    logits = forward(folder, ids)
    safetensors.torch.save_file(
        {"input_ids": ids, "logits": logits}, folder / "golden.safetensors"
    )
    return logits


def distance(found, expected):
    """The largest difference, relative to the largest expected logit."""
    if found.shape != expected.shape:
        return float("inf")
    return ((found - expected).abs().max() / expected.abs().max()).item()


def check():
    failed = 0
    for name in CASES:
        golden = safetensors.torch.load_file(FIXTURES / name / "golden.safetensors")
        with tempfile.TemporaryDirectory() as scratch:
            remade = distance(make(name, Path(scratch)), golden["logits"])
        committed = distance(forward(FIXTURES / name, golden["input_ids"]), golden["logits"])
        good = remade <= TOLERANCE and committed <= TOLERANCE
        failed += not good
        verdict = "ok" if good else "FAIL"
        print(f"{verdict} {name}: remade {remade:.1e}, committed {committed:.1e}")
    stray = {path.name for path in FIXTURES.iterdir() if path.is_dir()} - set(CASES)
    for name in sorted(stray):
        print(f"FAIL {name}: no case makes this folder")
    return 1 if failed or stray else 0


def write():
    for name in CASES:
        folder = FIXTURES / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(name, folder)
    (FIXTURES / "VERSIONS.json").write_text(json.dumps(versions(), indent=2) + "\n")
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
