#!/usr/bin/env python3
"""Speed and memory of one forward in float32, `optimize eval` against torch, in turns.

    forward_speed.py OPTIMIZE MODEL [--sequences 4] [--length 512] [--threads 2] [--rounds 3]

Both score every position of the same random token ids: all logits, and their log-softmax. Each
round runs our program and then torch, each in a process of its own. Ours is timed from the first
byte of weights it reads to the last score: it streams the model from the file. torch has the model
in memory, is warmed up, and runs the sequences as one batch and one by one; its better time counts.
Peak memory is that of the whole process (torch: of the run that was faster). Prints one JSON line a
run, then the medians.
"""
import argparse
import json
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time


def finished(command):
    """Runs it: standard output, standard error, peak resident bytes, seconds of the process."""
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - began
        out.seek(0), err.seek(0)
        stdout, stderr = out.read(), err.read()
    if status != 0:
        sys.exit(f"{command[0]} failed: {stderr}")
    return stdout, stderr, usage.ru_maxrss * 1024, seconds


def ours(args, ids):
    command = [args.optimize, "eval", args.model, "--tokens", ids, "--json"]
    command += ["--window", str(args.length), "--threads", str(args.threads)]
    stdout, stderr, peak, seconds = finished(command)
    forward = float(re.search(r"tokens in ([0-9.]+) s on", stderr).group(1))
    nll = json.loads(stdout)["mean_nll"]
    return {"tool": "optimize", "forward": forward, "process": seconds, "peak": peak, "nll": nll}


def theirs(args, ids):
    best = None
    for batch in (args.sequences, 1):
        command = [sys.executable, __file__, args.optimize, args.model, "--torch", ids]
        command += ["--length", str(args.length), "--threads", str(args.threads)]
        stdout, _, peak, seconds = finished(command + ["--batch", str(batch)])
        run = json.loads(stdout.splitlines()[-1])
        run |= {"process": seconds, "peak": peak}
        print(json.dumps(run), flush=True)
        best = run if best is None or run["forward"] < best["forward"] else best
    return best


def torch_forward(args):
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    text = pathlib.Path(args.torch).read_text()
    ids = torch.tensor([int(word) for word in text.split()]).view(-1, args.length)

    def score(rows):
        logprobs = torch.log_softmax(model(rows, use_cache=False).logits[:, :-1], dim=-1)
        return -logprobs.gather(2, rows[:, 1:, None]).double().sum().item()

    with torch.inference_mode():
        model(ids[:1, :64], use_cache=False)
        began = time.monotonic()
        total = sum(score(rows) for rows in ids.split(args.batch))
        seconds = time.monotonic() - began
    scored = ids.shape[0] * (args.length - 1)
    tool = f"torch {torch.__version__}"
    print(json.dumps(
        {"tool": tool, "batch": args.batch, "forward": seconds, "nll": total / scored}
    ))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("optimize")
    parser.add_argument("model")
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.torch:
        return torch_forward(args)
    vocab = json.loads((pathlib.Path(args.model) / "config.json").read_text())["vocab_size"]
    draw = random.Random(0)
    runs = {"optimize": [], "torch": []}
    with tempfile.NamedTemporaryFile("w", suffix=".ids") as file:
        count = args.sequences * args.length
        file.write(" ".join(str(draw.randrange(vocab)) for _ in range(count)))
        file.flush()
        for _ in range(args.rounds):
            load = os.getloadavg()[0]
            runs["optimize"].append(ours(args, file.name))
            print(json.dumps(runs["optimize"][-1] | {"load": load}), flush=True)
            runs["torch"].append(theirs(args, file.name))
    median = {tool: statistics.median(r["forward"] for r in all) for tool, all in runs.items()}
    for tool, all in runs.items():
        peak = max(run["peak"] for run in all)
        rate = args.sequences * args.length / median[tool]
        print(f"{tool}: median {median[tool]:.2f} s, {rate:.0f} tokens/s, peak {peak / 1e9:.2f} GB")
    print(f"optimize takes {median['optimize'] / median['torch']:.3f} of torch's time")
    gap = max(abs(a["nll"] - b["nll"]) for a, b in zip(runs["optimize"], runs["torch"]))
    print(f"mean NLL differs by at most {gap:.1e} nats")
    return 0 if gap < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
