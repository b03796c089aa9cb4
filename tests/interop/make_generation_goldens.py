#!/usr/bin/env python3
"""Makes tests/fixtures/generation.json: what transformers generates as generation_config.json says.

    make_generation_goldens.py            writes the file
    make_generation_goldens.py --check    holds the installed transformers against the committed file
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/fixtures/generation.json"
MODEL = ROOT / "tests/models/stories260k"
PROMPT = "Once upon a time, there was a little"

# Many name tokens of the greedy text, which is that of the first case.
CASES = [
    {},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 1.3, "do_sample": False},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 3, "max_new_tokens": 120},
    {"no_repeat_ngram_size": 0},
    {"suppress_tokens": [430, 433]},
    {"suppress_tokens": [426]},
    {"begin_suppress_tokens": [298, 337]},
    {"bad_words_ids": [[430], [265, 282], [2]]},
    {"bad_words_ids": [[317, 426], [337, 410, 408]]},
    {"sequence_bias": [[[401], -3.0], [[337, 410], -10.0]]},
    {"min_length": 30, "eos_token_id": [430, 426]},
    {"min_length": 0, "eos_token_id": 430},
    {"min_new_tokens": 12, "eos_token_id": [430, 426, 2]},
    {"eos_token_id": [2, 426]},
    {"eos_token_id": 426},
    {"forced_eos_token_id": 2, "max_new_tokens": 9},
    {"forced_eos_token_id": [426, 2], "max_length": 24},
    {"forced_bos_token_id": 426, "begin_suppress_tokens": [338], "prompt": ""},
    {"begin_suppress_tokens": [403], "prompt": ""},
    {"max_length": 20},
    {"max_length": 20, "max_new_tokens": 5},
    {"max_new_tokens": 3},
    {"exponential_decay_length_penalty": [4, 1.6], "eos_token_id": [430, 2]},
    {"stop_strings": "was"},
    {"stop_strings": ["zebra", "ed to"]},
    {"typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "num_beams": 1, "top_k": 0},
    {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "top_k": 20},
    {"do_sample": True, "top_k": 1, "temperature": 0.7, "repetition_penalty": 1.2},
]


def generate(model, tokenizer, config):
    prompt = config.get("prompt", PROMPT)
    config = {key: value for key, value in config.items() if key != "prompt"}
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    settings = {"eos_token_id": 2, "bos_token_id": 1, "max_new_tokens": 40, **config}
    if "max_length" in config and "max_new_tokens" not in config:
        del settings["max_new_tokens"]
    if "sequence_bias" in settings:
        settings["sequence_bias"] = [[list(t), b] for t, b in settings["sequence_bias"]]
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=GenerationConfig(pad_token_id=0, **settings),
        tokenizer=tokenizer,
    )
    return out[0, ids.shape[1] :].tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    model.generation_config = GenerationConfig()
    rows = [{"config": c, "tokens": generate(model, tokenizer, c)} for c in CASES]
    if not arguments.check:
        head = {"transformers": transformers.__version__, "torch": torch.__version__}
        head["prompt"] = PROMPT
        body = ",\n".join(json.dumps(row) for row in rows)
        GOLDEN.write_text(f'{json.dumps(head)[:-1]}, "cases": [\n{body}\n]}}\n')
        return 0
    committed = json.loads(GOLDEN.read_text())["cases"]
    wrong = [row["config"] for row, kept in zip(rows, committed) if row != kept]
    for config in wrong:
        print(f"FAIL generation: {config}")
    return 1 if wrong or len(rows) != len(committed) else 0


if __name__ == "__main__":
    sys.exit(main())
