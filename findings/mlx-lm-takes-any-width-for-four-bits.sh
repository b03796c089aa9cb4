#!/usr/bin/env bash
# mlx-lm 0.32.0: every compressed-tensors config whose format is `pack-quantized` is taken for 4 bits in
# groups of 32, whatever `num_bits` and `group_size` say.
#
# One would guess that the two numbers which decide what the bytes mean are read, since the comment above
# the function says that formats which are not understood are no longer misread.
#
# Seen: 8 bits in groups of 128 is read as {'group_size': 32, 'bits': 4, 'mode': 'affine'}
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
    mlx-lm==0.32.0 mlx==0.32.0 mlx-cpu==0.32.0 transformers==5.23.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 TQDM_DISABLE=1 TRANSFORMERS_VERBOSITY=error
venv/bin/python - <<'END'
from mlx_lm.utils import _compressed_tensors_quantization

weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
config = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
}
taken = _compressed_tensors_quantization(config)
print("8 bits in groups of 128 is read as", taken)
assert taken == {"group_size": 32, "bits": 4, "mode": "affine"}, "changed"
END
