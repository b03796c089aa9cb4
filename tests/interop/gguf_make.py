"""A llama's folder as a GGUF file by ggml's own quantizer, in the mix of types of Q4_K_S, or as F32.

gguf_make.py FOLDER OUT.gguf Q4_K_S|F32"""

import ctypes
import json
import pathlib
import struct
import sys

import llama

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tensors(path):
    """Names, shapes and 32-bit floats of a safetensors file of bf16 or f32."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    for name, said in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + at for at in said["data_offsets"])
        raw = data[begin:end]
        if said["dtype"] == "BF16":
            wide = bytearray(2 * len(raw))
            wide[2::4], wide[3::4] = raw[::2], raw[1::2]
            raw = bytes(wide)
        yield name, said["shape"], raw


def theirs(name):
    """llama.cpp's name of a tensor."""
    module, kind = name.rsplit(".", 1)
    parts = module.split(".", 3)
    if parts[:2] == ["model", "layers"]:
        return f"blk.{parts[2]}.{NAMES[parts[3]]}.{kind}"
    return f"{NAMES[module]}.{kind}"


def paired(raw, rows, head):
    """Rows in the order of convert_hf_to_gguf.py's LlamaModel.permute."""
    row = len(raw) // rows
    order = [h + t * head // 2 + i for h in range(0, rows, head) for i in range(head // 2) for t in (0, 1)]
    return b"".join(raw[at * row : (at + 1) * row] for at in order)


def kind_of(name, layers):
    """The type that llama-quantize gives a tensor in Q4_K_S (src/llama-quant.cpp)."""
    if name in ("token_embd.weight", "output.weight"):
        return "Q6_K"
    layer = int(name.split(".")[1])
    if "attn_v" in name and layer < 4 or "ffn_down" in name and layer < layers // 8:
        return "Q5_K"
    return "Q4_K"


def keys(folder, config, mix):
    """What llama.cpp wants to know."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    special = {token["id"] for token in tokenizer["added_tokens"]}
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    rope = config.get("rope_parameters", config)["rope_theta"]
    count = lambda name, value: (f"llama.{name}", "u32", value)
    return [
        ("general.architecture", "str", "llama"), ("general.quantization_version", "u32", 2),
        ("general.file_type", "u32", 14 if mix else 0),
        count("block_count", config["num_hidden_layers"]),
        count("context_length", config["max_position_embeddings"]),
        count("embedding_length", config["hidden_size"]),
        count("feed_forward_length", config["intermediate_size"]),
        count("attention.head_count", config["num_attention_heads"]),
        count("attention.head_count_kv", config["num_key_value_heads"]),
        count("rope.dimension_count", config["head_dim"]), count("vocab_size", config["vocab_size"]),
        ("llama.attention.layer_norm_rms_epsilon", "f32", config["rms_norm_eps"]),
        ("llama.rope.freq_base", "f32", rope),
        ("tokenizer.ggml.model", "str", "gpt2"), ("tokenizer.ggml.pre", "str", "gpt-2"),
        ("tokenizer.ggml.tokens", "[str]", [token for token, _ in vocab]),
        ("tokenizer.ggml.token_type", "[i32]", [3 if id in special else 1 for _, id in vocab]),
        ("tokenizer.ggml.merges", "[str]", merges),
        ("tokenizer.ggml.bos_token_id", "u32", config["bos_token_id"]),
        ("tokenizer.ggml.eos_token_id", "u32", config["eos_token_id"]),
        ("tokenizer.ggml.add_bos_token", "bool", False),
    ]


def main(folder, out, kind):
    folder, lib = pathlib.Path(folder), llama.library()
    config = json.loads((folder / "config.json").read_text())
    made = []
    for name, shape, raw in tensors(folder / "model.safetensors"):
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        if "q_proj" in name or "k_proj" in name:
            raw = paired(raw, shape[0], config["head_dim"])
        name = theirs(name)
        mixed = kind != "F32" and len(shape) == 2
        chosen = kind_of(name, config["num_hidden_layers"]) if mixed else "F32"
        if chosen != "F32":
            values = (ctypes.c_float * (len(raw) // 4)).from_buffer_copy(raw)
            raw = llama.quantized(lib, chosen, values, *shape)
        made.append((name, chosen, shape, raw))
    llama.write(out, keys(folder, config, kind != "F32"), made)


if __name__ == "__main__":
    main(*sys.argv[1:])
