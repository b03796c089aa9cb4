#!/usr/bin/env python3
"""Holds the configurations that programs describe themselves as against transformers.

Each checkpoint of tests/fixtures/families is loaded as it is, and its weights again into the model
that the described configuration makes: the logits are the same to the bit. The same without the first
layer, where there is more than one, against the loaded model that has lost it.

    describe.py DESCRIBE        the built example `describe`
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "families"


def described(tool, folder, *layer):
    """The configuration, read by transformers from a file."""
    text = subprocess.run([tool, folder, *layer], check=True, capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_text(text)
        return AutoConfig.from_pretrained(scratch)


def logits(model, config):
    model.config._attn_implementation = "eager"
    ids = torch.arange(40).remainder(config.vocab_size)[None]
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def remade(config, weights):
    made = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    made.load_state_dict(weights, strict=True)
    return made.eval()


def without_first(model):
    """Takes the first layer out. Windows are by layer, and go with it."""
    del model.model.layers[0]
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = index
    model.config.num_hidden_layers -= 1
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[1:]
    return model


def main():
    tool, failed, count = sys.argv[1], [], 0
    for folder in sorted(path for path in FIXTURES.iterdir() if path.is_dir()):
        original = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        ).eval()
        config = described(tool, folder)
        found = [(logits(original, config), logits(remade(config, original.state_dict()), config))]
        names = [folder.name]
        if original.config.num_hidden_layers > 1:
            config = described(tool, folder, "0")
            pruned = without_first(original)
            found.append((logits(pruned, config), logits(remade(config, pruned.state_dict()), config)))
            names.append(f"{folder.name} without its first layer")
        for name, (expected, got) in zip(names, found):
            count += 1
            if not torch.equal(expected, got):
                failed.append(f"{name}: {(expected - got).abs().max():.3g} of {expected.abs().max():.3g}")
    print("\n".join(failed) or f"{count} described models give the same logits")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
