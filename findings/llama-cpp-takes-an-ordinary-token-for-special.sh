#!/usr/bin/env bash
# llama.cpp of xllamacpp 2026.10.11549: a token that is called "</s>" (or "<|end|>", "<EOT>", and so on) is found
# in a text before any merges, and ends an answer, whatever `tokenizer.ggml.token_type` says it is.
#
# One would guess that an ordinary token (type 1) is made by merges alone, as in tokenizer.json. Qwen 2.5 has such
# a token: text with "</s>" in it, as old HTML has, gets other ids from llama.cpp than from the model's tokenizer.
#
# Seen: "x</s>": [0, 4] where no merges make the token, [0, 1, 2, 3] if the same token is called "</q>"
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check xllamacpp==2026.10.11549
venv/bin/python - <<'END'
import ctypes
import importlib.util
import pathlib
import struct


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def said(value):
    """A value of a GGUF file: a text, a list of them, a list of numbers, a float, or a count."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    return struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)


def write(path, name):
    keys = {
        "general.architecture": "llama", "llama.context_length": 8, "llama.embedding_length": 2,
        "llama.block_count": 1, "llama.feed_forward_length": 2, "llama.attention.head_count": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": ["x", "</", name[2], ">", name, "<", "/"],
        "tokenizer.ggml.token_type": [1] * 7, "tokenizer.ggml.merges": ["< /"],
    }
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys))
    pathlib.Path(path).write_bytes(head + b"".join(text(key) + said(value) for key, value in keys.items()))


class Params(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint8 * 1024)]


folder = pathlib.Path(importlib.util.find_spec("xllamacpp").origin).parent
lib, pointer = ctypes.CDLL(str(next(folder.glob("*.so")))), ctypes.c_void_p
quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, pointer)(lambda *_: None)
lib.llama_log_set(quiet, None)
lib.llama_model_default_params.restype = Params
lib.llama_model_load_from_file.restype = lib.llama_model_get_vocab.restype = pointer


def ids(name):
    write("x.gguf", name)
    params = lib.llama_model_default_params()
    params.bytes[72] = 1  # vocab_only
    vocab = pointer(lib.llama_model_get_vocab(pointer(lib.llama_model_load_from_file(b"x.gguf", params))))
    raw, out = b"x" + name.encode(), (ctypes.c_int32 * 16)()
    return list(out[: lib.llama_tokenize(vocab, raw, len(raw), out, len(out), False, True)])


found = {name: ids(name) for name in ("</s>", "</q>")}
print(found)
assert found == {"</s>": [0, 4], "</q>": [0, 1, 2, 3]}, "changed"
END
