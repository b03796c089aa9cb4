"""Prints 24 prompts of 8 to 39 tokens, a list of ids a line, cut from a text by a fixed seed.

    artifact_prompts.py MODEL TEXT
"""

import json
import random
import sys

from tokenizers import Tokenizer


def main(model, text):
    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    ids = tokenizer.encode(open(text, encoding="utf-8").read()[:200_000]).ids
    draw = random.Random(1)
    for _ in range(24):
        length, begin = draw.randrange(8, 40), draw.randrange(len(ids) - 40)
        print(json.dumps(ids[begin : begin + length]))


if __name__ == "__main__":
    main(*sys.argv[1:])
