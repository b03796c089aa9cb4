"""Ids of texts by llama.cpp under each of its names of pre-tokenizers, with one small vocabulary.

make_gguf_token_goldens.py [--check]      writes, or compares, ../fixtures/gguf/tokenizers.json

The merges are made of the texts themselves, over blanks, digits and marks, so that a cut shows."""

import collections
import json
import pathlib
import sys
import tempfile

import gguf_tokenizers
import llama

FIXTURE = pathlib.Path(__file__).parent / "../fixtures/gguf/tokenizers.json"
SPLITS = pathlib.Path(__file__).parent / "../../crates/checkpoint/src/gguf/tokenizer/splits.json"
TEXTS = [
    "I'll say DON'T, we'VE you'd he'S it\u2019s", "x = 3.14159; y == 1_000_000 // 2", "12 123 1234 12345 123456789012 3,141",
    "def f(x):\n    return x ** 2  # two\n\n\nclass A:\n\tpass\n", "!!! ??? ... --- <<< >>> a_b-c/d\\e|f~g`h^i $5 +6",
    "na\u00efve stra\u00dfe \u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! e\u0301a\u0300", "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u8fd9\u662f\u3002 \u3053\u3093\u306b\u3061\u306f \ud55c\uad6d\uc5b4 \u4e2d12\u6587",
    "MixedCase camelCase HTTPServer iPhone ABCdef \u00c9COLE \u00e9Cole", "tail   ", "\n \n  \n   x\r\n\r\ny", " a  b   c    d", "\U0001f642\U0001f44d \U0001f1e9\U0001f1ea a\U0001f642b",
]
MERGES = 300


def byte_chars():
    """What GPT-2 writes for each byte."""
    plain = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


def trained():
    """Tokens and merges: the most frequent pairs of whole texts."""
    chars = byte_chars()
    words = [[chars[b] for b in text.encode()] for text in TEXTS]
    tokens, merges = sorted(chars.values()), []
    while len(merges) < MERGES:
        pairs = collections.Counter(pair for word in words for pair in zip(word, word[1:]))
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        if "".join(best) not in tokens:
            tokens.append("".join(best))
        for word in words:
            at = 0
            while at + 1 < len(word):
                if (word[at], word[at + 1]) == best:
                    word[at : at + 2] = ["".join(best)]
                at += 1
    return tokens, [" ".join(merge) for merge in merges]


def keys(pre, tokens, merges):
    """Those of a GGUF file that has a vocabulary alone."""
    return [
        ("general.architecture", "str", "llama"), ("llama.context_length", "u32", 64),
        ("llama.embedding_length", "u32", 2), ("llama.block_count", "u32", 1),
        ("llama.feed_forward_length", "u32", 2), ("llama.attention.head_count", "u32", 1),
        ("llama.attention.layer_norm_rms_epsilon", "f32", 1e-5),
        ("tokenizer.ggml.model", "str", "gpt2"), ("tokenizer.ggml.pre", "str", pre),
        ("tokenizer.ggml.tokens", "[str]", tokens), ("tokenizer.ggml.merges", "[str]", merges),
        ("tokenizer.ggml.add_bos_token", "bool", False),
    ]


def goldens():
    tokens, merges = trained()
    ids = {}
    with tempfile.TemporaryDirectory() as made:
        for pre in (form["names"][0] for form in json.loads(SPLITS.read_text())):
            file = pathlib.Path(made, "x.gguf")
            llama.write(file, keys(pre, tokens, merges), [("token_embd.weight", "F32", [1, 2], bytes(8))])
            vocabulary = gguf_tokenizers.Vocabulary(file)
            ids[pre] = [vocabulary.ids(text) for text in TEXTS]
    return {"texts": TEXTS, "merges": merges, "tokens": tokens, "ids": ids}


def main():
    found = goldens()
    lines = [f"{json.dumps(pre)}: {json.dumps(ids, separators=(',', ':'))}" for pre, ids in found["ids"].items()]
    parts = [f'"{name}": {json.dumps(found[name])}' for name in ("texts", "merges", "tokens")]
    text = "{\n" + ",\n".join(parts) + ',\n"ids": {\n' + ",\n".join(lines) + "\n}\n}\n"
    if sys.argv[1:] == ["--check"]:
        sys.exit("the fixture is another" if FIXTURE.read_text() != text else 0)
    FIXTURE.write_text(text)


if __name__ == "__main__":
    main()
