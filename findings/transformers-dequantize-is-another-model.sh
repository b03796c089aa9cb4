#!/usr/bin/env bash
# transformers 5.23.0 with compressed-tensors 0.20.1: with `dtype=float32`, the same folder gives other
# logits with `dequantize=True` than without it, by about 1 %, where its scales are bf16.
#
# One would guess that dequantizing early or late is the same arithmetic. Without the option the scales
# are read as float32 first and each weight is code x scale in float32; with it each product is rounded
# to bf16, the dtype of the scale, and then widened. So the option is no oracle for a float32 model.
#
# Seen: scales in float32: 0.0e+00 of the largest logit between the two
#       scales in bfloat16: 9.0e-03
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
    torch==2.15.0 transformers==5.23.0 compressed-tensors==0.20.1 \
    numpy==2.4.6 safetensors==0.8.0 tokenizers==0.23.3
export HF_HUB_OFFLINE=1 TQDM_DISABLE=1 TRANSFORMERS_VERBOSITY=error
venv/bin/python - <<'END'
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from compressed_tensors.quantization.utils import calculate_qparams
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig, LlamaForCausalLM

TOKENS = torch.arange(3, 20)[None]


def noise(dtype=torch.float32):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads)).to(dtype)
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.data.normal_(0, 0.3)
    return model


def grid(bits, symmetric, *targets):
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": 32}
    return {"targets": list(targets), "weights": weights}


def save(model, folder, groups, ignore):
    """Nearest rounding of each group's range, compressed and saved by compressed-tensors itself."""
    config = QuantizationConfig(config_groups=groups, ignore=ignore, format="pack-quantized")
    apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "quantization_scheme"):
            parts = module.weight.data.unflatten(-1, (-1, 32))
            grid = module.quantization_scheme.weights
            scale, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), grid)
            module.weight_scale.data.copy_(scale)
            if hasattr(module, "weight_zero_point"):
                module.weight_zero_point.data.copy_(zero)
    compressor = ModelCompressor.from_pretrained_model(model, "pack-quantized")
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)


def logits(folder, **options):
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
        return model(TOKENS).logits


def away(a, b):
    return float((a - b).abs().max() / b.abs().max())


found = {}
for dtype in (torch.float32, torch.bfloat16):
    folder = str(dtype)
    save(noise(dtype), folder, {"all": grid(4, True, "Linear")}, ["lm_head"])
    option = CompressedTensorsConfig(dequantize=True)
    found[dtype] = away(logits(folder, quantization_config=option), logits(folder))
    print(f"scales in {folder.removeprefix('torch.')}: {found[dtype]:.1e} of the largest logit between the two")
assert found[torch.float32] < 1e-5 and found[torch.bfloat16] > 1e-3, "changed"
END
