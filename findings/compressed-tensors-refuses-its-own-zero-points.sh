#!/usr/bin/env bash
# compressed-tensors 0.20.1 with transformers 5.23.0: an asymmetric 8-bit model that
# compressed-tensors has compressed and saved itself does not load again.
#
# One would guess that what a library writes, it reads. It packs the zero points of groups into 32-bit
# words as it saves; as it loads, the modules are made on the meta device, and there `compress` returns
# before it packs them: the parameter has a row an output, the file one for eight. The same since 0.18.0.
# With `dequantize=True` the same folder loads, and is right.
#
# Seen: as it is: RuntimeError: You set `ignore_mismatched_sizes` to `False`, thus raising an error.
#       with dequantize=True: 0.02 of the largest logit from the model before rounding
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


with torch.no_grad():
    before = noise()(TOKENS).logits
save(noise(), "model", {"all": grid(8, False, "Linear")}, ["lm_head"])
try:
    logits("model")
    raise SystemExit("changed: it loads as it is")
except RuntimeError as error:
    assert "ignore_mismatched_sizes" in str(error), error
    print("as it is: RuntimeError:", str(error).split(" For")[0])
off = away(logits("model", quantization_config=CompressedTensorsConfig(dequantize=True)), before)
print(f"with dequantize=True: {off:.2f} of the largest logit from the model before rounding")
assert off < 0.05
END
