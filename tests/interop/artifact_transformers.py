"""Holds a quantized artifact against transformers with compressed-tensors, in float32.

    artifact_transformers.py ARTIFACT SEQUENCES.jsonl LOGITS

SEQUENCES.jsonl and LOGITS are what `cargo run --release -p tests --example greedy` wrote of the
artifact: token ids, and our logits of every position. The largest difference must be at most 1e-4
of the largest magnitude.
"""

import json
import sys

import numpy
import torch
from transformers import AutoModelForCausalLM

BAR = 1e-4


def main(artifact, sequences, logits):
    model = AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.float32).eval()
    vocab = model.config.vocab_size
    ours = numpy.fromfile(logits, dtype="<f4")
    at, worst = 0, 0.0
    for line in open(sequences, encoding="utf-8"):
        tokens = json.loads(line)["tokens"]
        with torch.no_grad():
            theirs = model(torch.tensor([tokens])).logits[0].float().numpy()
        mine = ours[at : at + len(tokens) * vocab].reshape(len(tokens), vocab)
        at += mine.size
        worst = max(worst, float(abs(mine - theirs).max() / abs(theirs).max()))
    assert at == ours.size and at > 0, "the logits are not those of the sequences"
    print(f"{artifact}: largest difference {worst:.2e} of the largest logit (bar {BAR:.0e})")
    return 0 if worst <= BAR else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
