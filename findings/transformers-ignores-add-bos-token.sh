#!/usr/bin/env bash
# transformers 5.23.0: `add_bos_token` of tokenizer_config.json does nothing where there is a
# tokenizer.json: true adds no token where that file's post-processor adds none, false takes none away
# where it adds one. The same for LlamaTokenizer, whose own argument it is.
#
# One would guess that the key, which many checkpoints set to say which it is, decides.
#
# Seen: the post-processor adds none: true and false both give ['a']
#       it adds one: true and false both give ['<s>', 'a']
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


from tokenizers import processors

for adds in (False, True):
    for said in (True, False):
        folder = f"{adds}-{said}"
        tokenizer = save(folder, tokenizer_class="PreTrainedTokenizerFast", add_bos_token=said)
        if adds:
            tokenizer.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", 1)]
            )
            tokenizer.save(f"{folder}/tokenizer.json")
        theirs = AutoTokenizer.from_pretrained(folder)
        tokens = theirs.convert_ids_to_tokens(theirs("a").input_ids)
        print(f"post-processor adds one: {adds}, add_bos_token: {said}: {tokens}")
        assert tokens == (["<s>", "a"] if adds else ["a"]), "changed"
END
