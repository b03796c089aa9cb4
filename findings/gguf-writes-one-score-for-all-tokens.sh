#!/usr/bin/env bash
# gguf 0.19.0, of llama.cpp's convert_hf_to_gguf.py: of a Llama folder with a tokenizer.json and no tokenizer.model
# every token gets the score -1000. Scores are all that llama.cpp merges by: it then takes the leftmost pair of each
# text, and ids are others than the model's. On the tokenizer of Llama 2, 13 of 54 texts.
#
# One would guess that the order of merges in tokenizer.json becomes scores, which it can.
#
# Seen: scores [-1000.0], llama.cpp: ['<s>', 'ab', 'c']; by the order of merges: ['<s>', 'a', 'bc'], as tokenizers
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
    gguf==0.19.0 transformers==5.23.0 tokenizers==0.23.3 jinja2==3.1.6 xllamacpp==2026.10.11549
export HF_HUB_OFFLINE=1 TQDM_DISABLE=1 TRANSFORMERS_VERBOSITY=error
venv/bin/python - <<'END'
import ctypes
import importlib.util
import pathlib

import gguf
from gguf.vocab import LlamaHfVocab
from tokenizers import Tokenizer, decoders, models, processors

words = ["<unk>", "<s>"] + [f"<0x{b:02X}>" for b in range(256)] + ["a", "b", "c", "bc", "ab"]
vocabulary = {word: i for i, word in enumerate(words)}
tokenizer = Tokenizer(
    models.BPE(vocab=vocabulary, merges=[("b", "c"), ("a", "b")], unk_token="<unk>", byte_fallback=True)
)
tokenizer.add_special_tokens(["<unk>", "<s>"])
tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
pathlib.Path("model").mkdir()
tokenizer.save("model/tokenizer.json")
pathlib.Path("model/tokenizer_config.json").write_text(
    '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "unk_token": "<unk>"}'
)
tokens, scores, kinds = zip(*LlamaHfVocab(pathlib.Path("model")).all_tokens())
print("scores", sorted({score for score, kind in zip(scores, kinds) if kind == gguf.TokenType.NORMAL}))


class Params(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint8 * 1024)]


folder = pathlib.Path(importlib.util.find_spec("xllamacpp").origin).parent
lib, pointer = ctypes.CDLL(str(next(folder.glob("*.so")))), ctypes.c_void_p
quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, pointer)(lambda *_: None)
lib.llama_log_set(quiet, None)
lib.llama_model_default_params.restype = Params
lib.llama_model_load_from_file.restype = lib.llama_model_get_vocab.restype = pointer


def llama_cpp(scores, text):
    writer = gguf.GGUFWriter("x.gguf", "llama")
    writer.add_context_length(8)
    writer.add_embedding_length(2)
    writer.add_block_count(1)
    writer.add_feed_forward_length(2)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    params = lib.llama_model_default_params()
    params.bytes[72] = 1  # vocab_only
    vocab = pointer(lib.llama_model_get_vocab(pointer(lib.llama_model_load_from_file(b"x.gguf", params))))
    out = (ctypes.c_int32 * 16)()
    count = lib.llama_tokenize(vocab, text.encode(), len(text), out, len(out), True, True)
    return [words[i] for i in out[:count]]


wanted = tokenizer.encode("abc").tokens
as_written = llama_cpp(scores, "abc")
by_merges = llama_cpp([-float(word == "ab") for word in words], "abc")
print("tokenizers", wanted, "llama.cpp", as_written, "by the order of merges", by_merges)
assert as_written == ["<s>", "ab", "c"] and by_merges == wanted == ["<s>", "a", "bc"], "changed"
END
