"""Quantizes a model with a rival, on given token windows, and says where the time went.

    rival_quantize.py llmcompressor|gptqmodel MODEL WINDOWS.jsonl GROUP OUT [DENSE] [--without NAME]

WINDOWS.jsonl   a calibration sample a line: a list of token ids, all of one length
GROUP           group size, 32, 64 or 128
OUT             the artifact: compressed-tensors, or GPTQ's own format
DENSE           gptqmodel only: the artifact's weights dequantized to f32, a plain checkpoint
NAME            a projection that is left alone in every layer, such as down_proj

int4, symmetric, act-order with static groups, damping 0.01, the head left alone. Prints one JSON
object: seconds of each phase, and the peak resident memory in bytes. Run it in the venv that
`peers.sh` made for that rival.
"""

import json
import os
import resource
import sys
import time

started = time.monotonic()


def windows(path):
    return [json.loads(line) for line in open(path, encoding="utf-8")]


def llmcompressor(model_path, samples, group, out, without):
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(2)
    imported = time.monotonic()
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    loaded = time.monotonic()
    weights = {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group",
        "group_size": group, "actorder": "static",
    }
    modifier = GPTQModifier(
        config_groups={"group_0": {"targets": ["Linear"], "weights": weights}},
        ignore=["lm_head"] + ([f"re:.*{without}"] if without else []), dampening_frac=0.01, block_size=128,
    )
    data = Dataset.from_dict({
        "input_ids": samples, "attention_mask": [[1] * len(s) for s in samples],
    })
    oneshot(
        model=model, dataset=data, recipe=modifier, max_seq_length=len(samples[0]),
        num_calibration_samples=len(samples), shuffle_calibration_samples=False,
    )
    solved = time.monotonic()
    model.save_pretrained(out, save_compressed=True)
    return imported, loaded, solved


def gptqmodel(model_path, samples, group, out, without):
    import torch
    # It takes one worker on two cores and then asks for two.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    torch.set_num_threads(2)
    imported = time.monotonic()
    config = QuantizeConfig(
        bits=4, group_size=group, sym=True, desc_act=True, static_groups=True, act_group_aware=False,
        damp_percent=0.01, dynamic={f"-:.*{without}": {}} if without else None,
    )
    model = GPTQModel.load(model_path, config, device="cpu", dtype=torch.float32)
    loaded = time.monotonic()
    data = [{"input_ids": s, "attention_mask": [1] * len(s)} for s in samples]
    model.quantize(data, batch_size=1, backend=BACKEND.TORCH)
    solved = time.monotonic()
    model.save(out)
    return imported, loaded, solved


def dense(artifact, source, out):
    """Dequantizes GPTQ's format (v1 zero points are one less) into a copy of the source."""
    import glob
    import shutil

    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors = {}
    for path in sorted(glob.glob(f"{artifact}/*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})
    config = json.load(open(f"{artifact}/config.json"))
    v1 = config["quantization_config"].get("checkpoint_format", "gptq") == "gptq"
    result = {}
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    for name, tensor in tensors.items():
        if name.endswith(".qweight"):
            stem = name[: -len(".qweight")]
            rows = tensor.shape[0] * 8
            codes = (tensor.unsqueeze(1) >> shifts.view(1, 8, 1)) & 15
            codes = codes.reshape(rows, tensor.shape[1])
            zeros = tensors[f"{stem}.qzeros"]
            zeros = ((zeros.unsqueeze(2) >> shifts.view(1, 1, 8)) & 15).reshape(zeros.shape[0], -1)
            zeros = zeros + 1 if v1 else zeros
            scales, group = tensors[f"{stem}.scales"].float(), tensors[f"{stem}.g_idx"].long()
            weight = (codes - zeros[group]).float() * scales[group]
            result[f"{stem}.weight"] = weight.T.contiguous()
        elif not name.endswith((".qzeros", ".scales", ".g_idx")):
            result[name] = tensor.float()
    os.makedirs(out, exist_ok=True)
    save_file(result, f"{out}/model.safetensors", metadata={"format": "pt"})
    config = json.load(open(f"{source}/config.json"))
    config.pop("dtype", None)
    config["torch_dtype"] = "float32"
    json.dump(config, open(f"{out}/config.json", "w"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if os.path.exists(f"{source}/{name}"):
            shutil.copy(f"{source}/{name}", out)


def main(*words):
    words = list(words)
    without = None
    if "--without" in words:
        at = words.index("--without")
        without = words[at + 1]
        del words[at : at + 2]
    tool, model, path, group, out, plain = (words + [None])[:6]
    samples = windows(path)
    run = {"llmcompressor": llmcompressor, "gptqmodel": gptqmodel}[tool]
    imported, loaded, solved = run(model, samples, int(group), out, without)
    ended = time.monotonic()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if plain:
        dense(out, model, plain)
    print(json.dumps({
        "tool": tool,
        "seconds": {
            "total": ended - started, "import": imported - started, "load": loaded - imported,
            "calibrate and solve": solved - loaded, "write": ended - solved,
        },
        "peak_memory": peak,
    }))


if __name__ == "__main__":
    main(*sys.argv[1:])
