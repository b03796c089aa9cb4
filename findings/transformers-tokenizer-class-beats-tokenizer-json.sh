#!/usr/bin/env bash
# transformers 5.23.0: where tokenizer_config.json names LlamaTokenizer, Qwen2Tokenizer or GPT2Tokenizer,
# the normalizer and pre-tokenizer of tokenizer.json are put away for those of the class; vocabulary and
# merges are kept.
#
# One would guess that tokenizer.json, which the tokenizers library reads by itself, is the whole
# tokenizer, and the name of the class a formality. Nothing is said. PreTrainedTokenizerFast is faithful.
#
# Seen: tokenizer.json, and PreTrainedTokenizerFast: ['a', '_', 'b']
#       LlamaTokenizer: ['▁a', '▁', 'b']
#       Qwen2Tokenizer, GPT2Tokenizer: ['a', 'Ġ', 'b']
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
    transformers==5.23.0 tokenizers==0.23.3 jinja2==3.1.6
export HF_HUB_OFFLINE=1 TQDM_DISABLE=1 TRANSFORMERS_VERBOSITY=error
venv/bin/python - <<'END'
import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers
from transformers import AutoTokenizer


def save(folder, **config):
    """Words are split at nothing; a space becomes "_", and that is all that tokenizer.json does."""
    words = ["<unk>", "<s>", "</s>", "\u2581", "a", "b", "\u2581a", "_", "\u0120"]
    merges = [("\u2581", "a")]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.normalizer = normalizers.Replace(" ", "_")
    Path(folder).mkdir()
    tokenizer.save(f"{folder}/tokenizer.json")
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    Path(folder, "tokenizer_config.json").write_text(json.dumps(names | config))
    return Tokenizer.from_file(f"{folder}/tokenizer.json")


expected = {
    "PreTrainedTokenizerFast": ["a", "_", "b"],
    "LlamaTokenizer": ["\u2581a", "\u2581", "b"],
    "Qwen2Tokenizer": ["a", "\u0120", "b"],
    "GPT2Tokenizer": ["a", "\u0120", "b"],
}
for name, tokens in expected.items():
    alone = save(name, tokenizer_class=name).encode("a b").tokens
    theirs = AutoTokenizer.from_pretrained(name).tokenize("a b")
    print(f"{name}: {theirs}; tokenizer.json alone: {alone}")
    assert alone == ["a", "_", "b"] and theirs == tokens, "changed"
END
