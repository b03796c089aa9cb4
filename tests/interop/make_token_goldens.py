#!/usr/bin/env python3
"""Makes the ids in crates/text/tests/fixtures/tokens/goldens.json: tokens that other files declare.

The file has the cases: a tokenizer.json, and beside it tokenizer_config.json, special_tokens_map.json
and added_tokens.json as each case has them.

    make_token_goldens.py            writes the ids of every case
    make_token_goldens.py --check    holds the installed transformers against the committed ids
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import tokenizers
import transformers
from transformers import AutoTokenizer

GOLDEN = Path(__file__).resolve().parents[2] / "crates/text/tests/fixtures/tokens/goldens.json"
FILES = {
    "config": "tokenizer_config.json",
    "map": "special_tokens_map.json",
    "added": "added_tokens.json",
}


def ids(golden, case):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_text(json.dumps(golden["tokenizer"]))
        for key, name in FILES.items():
            if case[key] is not None:
                (Path(folder) / name).write_text(json.dumps(case[key]))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return [tokenizer.encode(text) for text in golden["texts"]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    golden = json.loads(GOLDEN.read_text())
    made = [ids(golden, case) for case in golden["cases"]]
    if not arguments.check:
        golden["versions"] = {
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        }
        for case, given in zip(golden["cases"], made):
            case["ids"] = given
        GOLDEN.write_text(json.dumps(golden, indent=1))
        return 0
    wrong = [case["name"] for case, given in zip(golden["cases"], made) if case["ids"] != given]
    for name in wrong:
        print(f"FAIL tokens: {name}")
    return 1 if wrong or not made else 0


if __name__ == "__main__":
    sys.exit(main())
