"""Loads artifacts in one reader of one version, and judges what comes; run by readers.py.

    readers_load.py transformers|vllm|mlx|gptqmodel FOLDER NAME...

FOLDER/NAME is an artifact, FOLDER/NAME.npz what its bytes mean: `tokens` (I64 [T]), and the float32
logits of `tokens` ([T, vocab]) with every weight code x scale (`logits`), and with each product
rounded to the dtype of its scale (`rounded`). A JSON line an artifact and way of loading it:
{"name", "way", "verdict", "why"}. Verdicts:

    right     logits within 1e-4 of the largest one (vLLM computes in bf16, GPTQModel in f16: a mean
              divergence of at most 0.01 nat from the softmax of `logits`)
    rounded   the same, but of `rounded`
    wrong     it loads without an error, and the logits are others; `why` says by how much
    refused   an error; `why` is its first line
"""

import json
import os
import re
import sys
from pathlib import Path

import numpy

BAR = 1e-4
BAR_NATS = 0.01


def first_line(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # vLLM tries kernel after kernel, the CPU's last.
    line = lines[-1] if lines and lines[0].endswith("Reasons:") else "".join(lines[:1])
    text = f"{type(error).__name__}: {line}"
    return re.sub(r"(/[\w.-]+){3,}", "...", text)[:160].rstrip()


def distance(a, b):
    return float(numpy.abs(a - b).max() / numpy.abs(b).max())


def judged(logits, means):
    if not numpy.isfinite(logits).all():
        return "wrong", "logits that are not numbers"
    away = distance(logits, means["logits"])
    if away <= BAR:
        return "right", None
    if distance(logits, means["rounded"]) <= BAR:
        return "rounded", f"{away:.0e} of the largest logit"
    return "wrong", f"off by {away:.2f} of the largest logit"


def log_softmax(x):
    x = x.astype(numpy.float64)
    x = x - x.max(-1, keepdims=True)
    return x - numpy.log(numpy.exp(x).sum(-1, keepdims=True))


def judged_nats(logprobs, means):
    """The mean KL divergence from what the artifact means, over all positions but the last."""
    ours = log_softmax(means["logits"])[: len(logprobs)]
    nats = float((numpy.exp(ours) * (ours - logprobs)).sum(-1).mean())
    if nats <= BAR_NATS:
        return "right", None
    return "wrong", f"{nats:.2g} nats a token away"


def by_transformers(folder, means):
    import torch
    import transformers
    from transformers.utils.quantization_config import CompressedTensorsConfig

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    ways = {"as it is": {}, "dequantize=True": {"quantization_config": CompressedTensorsConfig(dequantize=True)}}
    for way, options in ways.items():
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager", **options
            ).eval()
            with torch.no_grad():
                logits = model(torch.from_numpy(means["tokens"])[None]).logits[0].numpy()
            yield way, *judged(logits, means)
        except Exception as error:
            yield way, "refused", first_line(error)


def by_vllm(folder, means):
    """In a process of its own, since an engine that failed leaves the next one broken."""
    from vllm import LLM, SamplingParams

    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            tokens = means["tokens"].tolist()
            model = LLM(
                model=str(folder),
                max_model_len=64,
                enforce_eager=True,
                max_logprobs=-1,
                dtype="bfloat16",
                disable_log_stats=True,
            )
            params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=-1)
            output = model.generate([{"prompt_token_ids": tokens}], params, use_tqdm=False)[0]
            # Entry p predicts token p, so the first is none.
            rows = output.prompt_logprobs[1:]
            found = numpy.array([[row[i].logprob for i in range(len(row))] for row in rows])
            answer = judged_nats(found, means)
        except BaseException as error:
            answer = "refused", first_line(error)
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    yield "as it is", *(json.loads(answer) if answer else ("refused", "the process ended"))


def by_gptqmodel(folder, means):
    import torch
    from gptqmodel import BACKEND, GPTQModel

    torch.set_num_threads(1)
    try:
        model = GPTQModel.load(str(folder), device="cpu", dtype=torch.float16, backend=BACKEND.TORCH)
        with torch.no_grad():
            logits = model.model(torch.from_numpy(means["tokens"])[None]).logits[0].float().numpy()
        yield "as it is", *judged_nats(log_softmax(logits), means)
    except Exception as error:
        yield "as it is", "refused", first_line(error)


def by_mlx(folder, means):
    import mlx.core as mx
    from mlx_lm import load

    try:
        model, _ = load(str(folder))
        logits = model(mx.array(means["tokens"])[None])[0].astype(mx.float32)
        yield "as it is", *judged(numpy.array(logits), means)
    except Exception as error:
        yield "as it is", "refused", first_line(error)


def main(reader, folder, *names):
    os.environ.update(
        HF_HUB_OFFLINE="1",
        TQDM_DISABLE="1",
        VLLM_LOGGING_LEVEL="CRITICAL",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
    )
    load = {
        "transformers": by_transformers,
        "vllm": by_vllm,
        "mlx": by_mlx,
        "gptqmodel": by_gptqmodel,
    }[reader]
    for name in names:
        means = numpy.load(Path(folder, f"{name}.npz"))
        for way, verdict, why in load(Path(folder, name), means):
            line = {"name": name, "way": way, "verdict": verdict, "why": why}
            print("JUDGED", json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    # vLLM's own threads sometimes abort the interpreter as it ends, when all has been said.
    os._exit(0)
