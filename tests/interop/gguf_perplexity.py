"""llama.cpp's perplexity of a text, by its library: gguf_perplexity.py MODEL.gguf TEXT [WINDOW]

As llama-perplexity counts: windows side by side, of each the second half is scored."""

import ctypes
import math
import sys

import llama


class Params(ctypes.Structure):
    """Parameters of any kind: longer than any of them, whose first fields alone are set."""

    _fields_ = [("words", ctypes.c_uint32 * 256)]


class Batch(ctypes.Structure):
    _fields_ = [
        ("count", ctypes.c_int32), ("token", ctypes.POINTER(ctypes.c_int32)), ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)), ("seqs", ctypes.POINTER(ctypes.c_int32)),
        ("seq", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))), ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


def main(path, text, window):
    lib, pointer = llama.library(), ctypes.c_void_p
    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, pointer)(lambda *_: None)
    lib.llama_log_set(quiet, None)
    for name in ("llama_model_default_params", "llama_context_default_params"):
        getattr(lib, name).restype = Params
    for name in ("llama_model_load_from_file", "llama_init_from_model", "llama_get_memory"):
        getattr(lib, name).restype = pointer
    lib.llama_model_get_vocab.restype = pointer
    lib.llama_batch_init.restype = Batch
    lib.llama_get_logits_ith.restype = ctypes.POINTER(ctypes.c_float)
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
    if not model:
        sys.exit("llama.cpp does not load it")
    model = pointer(model)
    params = lib.llama_context_default_params()
    params.words[0] = params.words[1] = params.words[2] = window
    context = pointer(lib.llama_init_from_model(model, params))
    vocab = pointer(lib.llama_model_get_vocab(model))
    size, raw = lib.llama_vocab_n_tokens(vocab), open(text, "rb").read()
    ids = (ctypes.c_int32 * (len(raw) + 8))()
    count = lib.llama_tokenize(vocab, raw, len(raw), ids, len(ids), True, False)
    batch, total, scored = lib.llama_batch_init(window, 0, 1), 0.0, 0
    for begin in range(0, count - window + 1, window):
        lib.llama_memory_clear(pointer(lib.llama_get_memory(context)), True)
        batch.count = window
        for i in range(window):
            batch.token[i], batch.pos[i], batch.seqs[i] = ids[begin + i], i, 1
            batch.seq[i][0], batch.logits[i] = 0, 1
        if lib.llama_decode(context, batch):
            sys.exit("llama_decode fails")
        for i in range(window // 2, window - 1):
            logits = lib.llama_get_logits_ith(context, i)[:size]
            top = max(logits)
            total += top + math.log(sum(math.exp(x - top) for x in logits)) - logits[ids[begin + i + 1]]
            scored += 1
    print(f"{math.exp(total / scored):.6f} {count} {scored}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 512)
