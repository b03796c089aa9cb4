"""GPTQ and AWQ folders of ours in transformers, which reads them by GPTQModel: gptq_transformers.py OPTIMIZE MODEL

The mean negative log likelihood of 128 token ids must be ours within 0.002 nats: its kernels compute in float16."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

IDS = [i * i * 37 % 4000 + 5 for i in range(128)]
BAR = 0.002


def theirs(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float16, attn_implementation="eager", device_map="cpu"
    ).eval()
    ids = torch.tensor([IDS])
    with torch.no_grad():
        logprobs = torch.log_softmax(model(ids).logits[0].float(), -1)
    return -logprobs[torch.arange(len(IDS) - 1), ids[0, 1:]].mean().item()


def main(optimize, model):
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        ids = Path(scratch, "ids")
        ids.write_text(" ".join(map(str, IDS)))
        for form in ("gptq", "awq"):
            folder = Path(scratch, form)
            quant = ["--quant", "int4", "--method", "rtn", "--no-gate", "--quiet", "--format", form]
            subprocess.run([optimize, *quant, model, "-o", folder], check=True, capture_output=True)
            said = subprocess.run(
                [optimize, "eval", folder, "--tokens", ids, "--path", "exact", "--quiet", "--json"],
                check=True, capture_output=True,
            )
            ours, other = json.loads(said.stdout)["mean_nll"], theirs(folder)
            agrees = abs(ours - other) < BAR
            wrong += not agrees
            print(f"{form}: ours {ours:.5f}, transformers {other:.5f}{'' if agrees else ', which differs'}", flush=True)
    return wrong


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(bool(code))
