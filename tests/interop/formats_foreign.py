"""Folders that other tools quantized, read by `optimize eval` with the perplexity of that tool.

    formats_foreign.py OPTIMIZE gptqmodel       with .venv/gptqmodel's Python
    formats_foreign.py OPTIMIZE llmcompressor   with a Python that has llm-compressor

The tool quantizes a model of noise of readers.py, saves it, loads what it saved, and computes the mean
negative log likelihood of a text in float16 (GPTQModel's kernels have no float32) or float32. Ours must
be within 0.2 % of it. One line a folder: the tool, both, and whether they agree.
"""

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import readers
import torch

TEXT = readers.ROOT / "tests/fixtures/stories.txt"
TOKENS = 128
BAR = 0.002


def perplexity(model, ids):
    with torch.no_grad():
        logits = model(ids[None]).logits[0].double()
    logprobs = torch.log_softmax(logits, -1)
    return math.exp(-logprobs[torch.arange(len(ids) - 1), ids[1:]].mean().item())


def by_gptqmodel(source, folder, ids, samples):
    """(name, folder, perplexity) of each kind."""
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.quantization import FORMAT, METHOD, QuantizeConfig

    plain = {"group_size": 32, "offload_to_disk": False}
    kinds = {
        "gptq 4 bits sym": {"bits": 4, "sym": True, **plain},
        "gptq 4 bits sym, desc_act": {"bits": 4, "sym": True, "desc_act": True, "act_group_aware": False, **plain},
        "gptq 4 bits asym": {"bits": 4, "sym": False, **plain},
        "gptq_v2 4 bits asym": {"bits": 4, "sym": False, "format": FORMAT.GPTQ_V2, **plain},
        "gptq 3 bits sym": {"bits": 3, "sym": True, **plain},
        "gptq 8 bits sym, per channel": {"bits": 8, "sym": True, **plain, "group_size": -1},
        "gptq, some of 8 bits, some dense": {
            "bits": 4, "sym": True, **plain,
            "dynamic": {"-:.*o_proj": {}, "+:.*down_proj": {"bits": 8, "group_size": 64}},
        },
        "awq 4 bits asym": {"bits": 4, "sym": False, "quant_method": METHOD.AWQ, "format": FORMAT.GEMM, **plain},
    }
    for name, settings in kinds.items():
        output = folder / readers.slug(name)
        try:
            model = GPTQModel.load(str(source), QuantizeConfig(**settings), device="cpu", dtype=torch.float16)
            model.quantize(samples, batch_size=1)
            model.save(str(output))
            loaded = GPTQModel.load(str(output), device="cpu", dtype=torch.float16, backend=BACKEND.TORCH)
        except Exception as error:
            print(f"{name}: GPTQModel itself fails: {type(error).__name__}: {str(error)[:200]}", flush=True)
            continue
        yield name, output, perplexity(loaded.model, ids)


def by_llmcompressor(source, folder, ids, samples):
    import transformers
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    for scheme in ("W4A16", "W4A16_ASYM", "W8A16"):
        output = folder / scheme
        model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"]))
        model.save_pretrained(output, save_compressed=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (output / name).write_bytes((source / name).read_bytes())
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            output, dtype=torch.float32, attn_implementation="eager",
            quantization_config=transformers.CompressedTensorsConfig(dequantize=True),
        )
        yield scheme, output, perplexity(loaded, ids)


def main(optimize, tool):
    from tokenizers import Tokenizer

    text = TEXT.read_text()
    every = Tokenizer.from_file(str(readers.STORIES / "tokenizer.json")).encode(text).ids
    ids = torch.tensor(every[:TOKENS])
    samples = [{"input_ids": every[i : i + 256], "attention_mask": [1] * 256} for i in range(0, 2048, 256)]
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = folder / "of-wide"
        readers.make_model(source, dtype="float16" if tool == "gptqmodel" else "float32")
        make = {"gptqmodel": by_gptqmodel, "llmcompressor": by_llmcompressor}[tool]
        for name, output, theirs in make(source, folder, ids, samples):
            command = [optimize, "eval", str(output), "--text", str(TEXT), "--window", str(TOKENS),
                       "--max-tokens", str(TOKENS), "--json", "--quiet"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                wrong += 1
                print(f"{name}: refused: {done.stderr}", flush=True)
                continue
            ours = json.loads(done.stdout)["perplexity"]
            same = abs(ours / theirs - 1) < BAR
            wrong += not same
            print(f"{name}: {tool} {theirs:.4f}, optimize {ours:.4f}{'' if same else ': NOT THE SAME'}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
