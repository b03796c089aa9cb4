#!/usr/bin/env bash
# transformers 5.23.0 with jinja2 3.1.6: a chat template with CRLF line ends renders with LF, though the
# same text inside a string of the template keeps its CR, and so does the content of a message.
#
# One would guess that text outside of tags is copied as it is: `tokenizer.chat_template` still shows the
# CR. (Jinja's lexer turns every line end into `newline_sequence`, which is "\n".) A renderer that copies
# gives the model a CR that it never saw.
#
# Seen: 'A\n1\r2\r\n3'
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


template = "A\r\n{{ '1\\r2' }}{{ messages[0].content }}"
save("model", tokenizer_class="PreTrainedTokenizerFast", chat_template=template)
tokenizer = AutoTokenizer.from_pretrained("model")
assert "\r\n" in tokenizer.chat_template, "changed"
rendered = tokenizer.apply_chat_template([{"role": "user", "content": "\r\n3"}], tokenize=False)
print(repr(rendered))
assert rendered == "A\n1\r2\r\n3", "changed"
END
