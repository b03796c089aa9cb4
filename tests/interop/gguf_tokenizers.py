"""Ids of texts by llama.cpp's tokenizer of a GGUF file.

gguf_tokenizers.py ids FILE.gguf < TEXTS.jsonl      a line of ids for each line, a text in JSON
gguf_tokenizers.py compare OURS FOLDER [NAME]       OURS is the example `tokenizer_ids`, built; FOLDER has a
                                                    tokenizer.json; NAME.inp and NAME.out are texts and ids of
                                                    llama.cpp's own tests
gguf_tokenizers.py read OURS NAME.gguf...           the vocabularies that llama.cpp is tested on"""

import ctypes
import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import unicodedata

import llama

# Of many scripts, with blanks, numbers, code, marks, emoji, and what looks like a special token.
TEXTS = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n \n", "a", " a", "  a", "a ", "Hello, world!",
    "I'll say it's fine, DON'T WE'VE you'd he'S", "don\u2019t can\u2019t", "x = 3.14159; y == 1_000_000 // 2",
    "1", "12", "123", "1234", "12345", "123456789012", " 42 ", "3,141,592.65", "\u0661\u0662\u0663 \u00bd \u00b2 \u2167",
    "def f(x):\n    return x ** 2  # square\n\n\nclass A:\n\tpass\n", "<div class=\"a\">&nbsp;</div>", "a_b-c/d\\e|f~g`h^i",
    "!!! ??? ... --- === ### $$$ +++ <<< >>>", "C:\\Users\\me\\file.txt /usr/bin/env", "https://example.org/a?b=c&d=%20#e",
    "caf\u00e9 na\u00efve \u00c5ngstr\u00f6m stra\u00dfe \u0130stanbul \u0131", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u041a\u0430\u043a \u0434\u0435\u043b\u0430?",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u8fd9\u662f\u6d4b\u8bd5\u3002 \u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \ud55c\uad6d\uc5b4", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u05e9\u05dc\u05d5\u05dd",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u1794\u17d2\u179a\u17c1\u17c7", "\U0001f642\U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea \u2764\ufe0f \U0001f469\u200d\U0001f469\u200d\U0001f467",
    "\u00a0nbsp\u2003em\u3000wide\u200bzero", "A\u00a0\u00a0B", "\ufeffbom", "\u2581\u2581low \u2581line", "<|endoftext|>a<|im_start|>user\nhi<|im_end|>\n",
    "<s>a</s> b<unk>", "<|begin_of_text|>x<|eot_id|> y", "<0x0A>", "tail   ", "\n \n  \n   x", "a\n\n\n\nb\r\r\nc",
    "MixedCase camelCase HTTPServer iPhone XMLHttpRequest ABCdef", "\u01c5\u02b0\u0301 \u0294\u0251",
    "=" * 40 + " " * 33 + "-" * 17 + "aaaaaaaaaaaaaaa" + " " * 8, "\x00\x01\x7f", "\U0001d4d0\U0001d7d8\U00010400",
]


class Params(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint8 * 1024)]


class Vocabulary:
    """The vocabulary of a GGUF file, as llama.cpp loads it."""

    # `vocab_only` of llama_model_params: the first of its truth values, of which the third alone is set.
    VOCAB_ONLY = 72

    def __init__(self, path):
        lib, pointer = llama.library(), ctypes.c_void_p
        self.quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, pointer)(lambda *_: None)
        lib.llama_log_set(self.quiet, None)
        lib.llama_model_default_params.restype = Params
        lib.llama_model_load_from_file.restype = lib.llama_model_get_vocab.restype = pointer
        params, at = lib.llama_model_default_params(), self.VOCAB_ONLY
        if list(params.bytes[at : at + 3]) != [0, 0, 1]:
            sys.exit("llama_model_params is laid out otherwise than in the pinned version")
        params.bytes[at] = 1
        lib.llama_backend_init()
        model = lib.llama_model_load_from_file(str(path).encode(), params)
        if not model:
            sys.exit(f"llama.cpp does not load {path}")
        self.lib, self.vocab = lib, pointer(lib.llama_model_get_vocab(pointer(model)))

    def ids(self, text, special=True):
        raw = text.encode()
        out = (ctypes.c_int32 * (4 * len(raw) + 8))()
        count = self.lib.llama_tokenize(self.vocab, raw, len(raw), out, len(out), special, True)
        if count < 0:
            sys.exit(f"llama_tokenize fails on {text!r}")
        return list(out[:count])


def goldens(name):
    """Texts and ids of llama.cpp's own tests, which add no special tokens."""
    with open(f"{name}.inp", newline="") as file:
        texts = file.read().split("\n__ggml_vocab_test__\n")
    return texts, [list(map(int, line.split())) for line in open(f"{name}.out")]


def compare(ours, folder, name=None):
    texts = list(TEXTS)
    if name:
        more, wanted = goldens(name)
        # The file ends with an end of a line, and one more text is empty.
        texts += more[: len(wanted)]
    with tempfile.TemporaryDirectory() as made:
        file = pathlib.Path(made, "x.gguf")
        lines = "".join(json.dumps(text) + "\n" for text in texts)
        out = subprocess.run([ours, folder, file], input=lines, capture_output=True, text=True)
        if out.returncode:
            sys.exit(f"{folder}: {out.stderr}")
        pairs = [json.loads(line) for line in out.stdout.splitlines()]
        vocabulary = Vocabulary(file)
        theirs = [vocabulary.ids(text) for text in texts]
        plain = [vocabulary.ids(text, special=False) for text in texts]
    bad = 0
    added = json.loads(pathlib.Path(folder, "tokenizer.json").read_text())["added_tokens"]
    ends = any(token["content"] == "</s>" for token in added)
    for text, (original, read), other in zip(texts, pairs, theirs, strict=True):
        # llama.cpp takes it for a special token wherever a vocabulary has it, Qwen's as an ordinary one.
        if "</s>" in text and not ends:
            other = read
        if not original == read == other:
            bad += 1
            print(f"{text[:60]!r}\n  tokenizer.json {original[:30]}\n  read back      {read[:30]}\n  llama.cpp      {other[:30]}")
    if name:
        for text, ids, golden in zip(texts[len(TEXTS) :], plain[len(TEXTS) :], wanted, strict=True):
            if ids != golden:
                bad += 1
                print(f"{text[:60]!r}\n  llama.cpp      {ids[:30]}\n  its own tests  {golden[:30]}")
    print(f"{pathlib.Path(folder).resolve().name}: {bad} of {len(texts)} texts differ")
    return bad


# Of models that are not decoders, that have no name of how text is cut, or that are not read yet.
REFUSED = ["aquila", "bert-bge", "gemma-4", "gpt-neox", "nomic-bert-moe"]
# The bytes of the values of a key, by their type.
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
# What a small llama says of itself.
LLAMA = [
    ("general.architecture", "str", "llama"), ("llama.context_length", "u32", 64), ("llama.embedding_length", "u32", 2),
    ("llama.block_count", "u32", 1), ("llama.feed_forward_length", "u32", 2), ("llama.attention.head_count", "u32", 1),
    ("llama.attention.layer_norm_rms_epsilon", "f32", 1e-5),
]


def tokenizer_keys(data):
    """The keys of a tokenizer in a GGUF file, as they stand in it, and how many tokens there are."""
    at, found, count = 24, [], 0

    def text(at):
        size = struct.unpack_from("<Q", data, at)[0]
        return data[at + 8 : at + 8 + size].decode(), at + 8 + size

    def skip(kind, at):
        return text(at)[1] if kind == 8 else at + SIZES[kind]

    for _ in range(struct.unpack_from("<Q", data, 16)[0]):
        begin = at
        key, at = text(at)
        kind, at = struct.unpack_from("<I", data, at)[0], at + 4
        if kind == 9:
            kind, size = struct.unpack_from("<IQ", data, at)
            at += 12
            if key == "tokenizer.ggml.tokens":
                count = size
            for _ in range(size):
                at = skip(kind, at)
        else:
            at = skip(kind, at)
        if key.startswith("tokenizer."):
            found.append(data[begin:at])
    return found, count


def llama_with(path, to):
    """A small llama with the vocabulary of a file that has no more than one."""
    found, count = tokenizer_keys(pathlib.Path(path).read_bytes())
    llama.write(to, LLAMA, [("token_embd.weight", "F32", [count, 2], bytes(8 * count))])
    made = pathlib.Path(to).read_bytes()
    info = made.index(struct.pack("<Q", 17) + b"token_embd.weight")
    end = len(made) - 8 * count - (-8 * count) % 32
    head = made[:16] + struct.pack("<Q", len(LLAMA) + len(found)) + made[24:info] + b"".join(found)
    head += made[info:end].rstrip(b"\0").ljust(25 + 4 + 16 + 12, b"\0")
    pathlib.Path(to).write_bytes(head + bytes(-len(head) % 32) + made[end:])


def otherwise(name, text):
    """Whether llama.cpp is known to find other ids than the model's own tokenizer: it does not normalize, and
    takes "</s>" for a special token of Qwen's, which is a word there."""
    return name.startswith("qwen") and ("</s>" in text or not unicodedata.is_normalized("NFC", text))


def read(ours, files):
    """Our ids of a file's own vocabulary against llama.cpp's: of how many texts they differ."""
    bad = 0
    for path in files:
        name = pathlib.Path(path).stem.removeprefix("ggml-vocab-")
        texts, wanted = list(TEXTS), []
        if pathlib.Path(f"{path}.inp").exists():
            more, wanted = goldens(path)
            texts += more[: len(wanted)]
        with tempfile.TemporaryDirectory() as made:
            file = pathlib.Path(made, "x.gguf")
            llama_with(path, file)
            lines = "".join(json.dumps(text) + "\n" for text in texts)
            out = subprocess.run([ours, file], input=lines, capture_output=True, text=True)
            if out.returncode:
                print(f"{name}: {out.stderr.strip()[-300:]}")
                bad += name not in REFUSED
                continue
            vocabulary, differ = Vocabulary(file), 0
            for text, line in zip(texts, out.stdout.splitlines(), strict=True):
                found, theirs = json.loads(line)[0], vocabulary.ids(text)
                if found != theirs and not otherwise(name, text):
                    differ += 1
                    print(f"{text[:60]!r}\n  ours      {found[:30]}\n  llama.cpp {theirs[:30]}")
        print(f"{name}: {differ} of {len(texts)} texts differ")
        bad += differ
    return bad


if __name__ == "__main__":
    if sys.argv[1] == "ids":
        loaded = Vocabulary(sys.argv[2])
        for line in sys.stdin:
            print(json.dumps(loaded.ids(json.loads(line))))
    elif sys.argv[1] == "read":
        sys.exit(bool(read(sys.argv[2], sys.argv[3:])))
    else:
        sys.exit(bool(compare(*sys.argv[2:])))
