#!/usr/bin/env python3
"""Makes crates/arch/tests/goldens/rope.json: the rotary frequencies that transformers computes.

    make_rope_goldens.py            writes the file
    make_rope_goldens.py --check    holds the installed transformers against the committed file
"""

import argparse
import copy
import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

GOLDEN = Path(__file__).resolve().parents[2] / "crates/arch/tests/goldens/rope.json"

LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}

# Each case: the size of a head, and the keys of the configuration.
CASES = [
    (64, {}),
    (10, {"rope_theta": 1000000}),
    (128, {"rope_theta": 500000.0}),
    (128, {"rope_theta": 10000.0, "rope_scaling": {"type": "default"}}),
    (128, {"rope_scaling": {"type": "linear", "factor": 2.5}}),
    (96, {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 8}}),
    (128, {"rope_theta": 500000.0, "rope_scaling": LLAMA31, "max_position_embeddings": 131072}),
    (
        64,
        {
            "rope_theta": 500000.0,
            "rope_scaling": {**LLAMA31, "factor": 32.0},
            "max_position_embeddings": 131072,
        },
    ),
    (
        80,
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000,
                "factor": 3,
                "low_freq_factor": 2,
                "high_freq_factor": 5,
            },
            "max_position_embeddings": 4096,
        },
    ),
    (
        64,
        {
            "rope_scaling": {**LLAMA31, "original_max_position_embeddings": 4096},
            "original_max_position_embeddings": 4096,
        },
    ),
    (128, {"rope_theta": 1000000.0, "rope_scaling": YARN, "max_position_embeddings": 131072}),
    (64, {"rope_parameters": {**YARN, "rope_theta": 1e6, "truncate": False}}),
    (64, {"rope_parameters": {**YARN, "rope_theta": 1e6, "truncate": None}}),
    (64, {"rope_parameters": {**YARN, "rope_theta": 1e6, "attention_factor": 1.25}}),
    (64, {"rope_parameters": {**YARN, "rope_theta": 1e6, "attention_factor": None}}),
    (64, {"rope_scaling": {**YARN, "beta_fast": 16, "beta_slow": 2}}),
    (64, {"rope_scaling": {**YARN, "beta_fast": 0, "beta_slow": None}}),
    (64, {"rope_scaling": {**YARN, "factor": 40, "mscale": 0.707, "mscale_all_dim": 1.0}}),
    (64, {"rope_scaling": {**YARN, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0}}),
    (64, {"rope_scaling": {**YARN, "factor": 40, "mscale": 0.5}}),
    (64, {"rope_scaling": {**YARN, "factor": 40, "mscale": 0.5, "mscale_all_dim": 0}}),
    (64, {"rope_scaling": {**YARN, "factor": None}, "max_position_embeddings": 100000}),
    (64, {"rope_scaling": {**YARN, "factor": 0.5}}),
    (64, {"rope_scaling": {"type": "yarn", "factor": 2.0}, "max_position_embeddings": 2048}),
    (8, {"rope_scaling": {**YARN, "original_max_position_embeddings": 4}}),
    (
        150,
        {
            "rope_theta": 150000,
            "rope_scaling": {
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 32.0,
                "original_max_position_embeddings": 4096,
                "rope_type": "yarn",
                "truncate": False,
            },
        },
    ),
]


def compute(head_dim, keys):
    config = LlamaConfig(hidden_size=head_dim, num_attention_heads=1, **copy.deepcopy(keys))
    rope = LlamaRotaryEmbedding(config)
    magnitude = torch.tensor(float(rope.attention_scaling), dtype=torch.float32).item()
    return {
        "head_dim": head_dim,
        "keys": keys,
        "inv_freq": rope.inv_freq.tolist(),
        "magnitude": magnitude,
    }


def close(a, b):
    values = [[*row["inv_freq"], row["magnitude"]] for row in (a, b)]
    same = (a["head_dim"], a["keys"], len(values[0])) == (b["head_dim"], b["keys"], len(values[1]))
    return same and all(abs(x - y) <= 1e-6 * abs(y) for x, y in zip(*values))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    made = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "cases": [compute(*case) for case in CASES],
    }
    if not arguments.check:
        rows = ",\n".join(json.dumps(row) for row in made["cases"])
        head = json.dumps({key: made[key] for key in ("transformers", "torch")})[:-1]
        GOLDEN.write_text(f'{head}, "cases": [\n{rows}\n]}}\n')
        return 0
    committed = json.loads(GOLDEN.read_text())["cases"]
    pairs = list(zip(made["cases"], committed))
    wrong = [a for a, b in pairs if not close(a, b)]
    for row in wrong:
        print(f"FAIL rope: {row['keys']}")
    return 1 if wrong or len(made["cases"]) != len(committed) else 0


if __name__ == "__main__":
    sys.exit(main())
