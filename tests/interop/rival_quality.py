"""Quantizes a model with three tools on the same token windows, and scores all three alike.

    rival_quality.py OPTIMIZE PEERS MODEL CALIBRATION EVALUATION [--group 128] [--draws 5]
                     [--samples 64] [--length 512] [--tokens 40000] [--without NAME]

OPTIMIZE     our program; it scores every artifact, its own and the rivals'
PEERS        the folder in which peers.sh installed llmcompressor and gptqmodel
CALIBRATION  a text; each draw takes its own windows of it, by a fixed seed
EVALUATION   a text of which the first tokens are scored, in windows of --length

int4, symmetric, act-order with static groups, damping 0.01, the head left alone. Prints a JSON line
for each artifact, then for each tool the mean and its standard error over the draws. A tool that
fails on the model is said to, with its last line; NAME is a projection that all leave alone. Run it in tests/interop/.venv/transformers.
"""

import argparse
import json
import math
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile

from tokenizers import Tokenizer

HERE = pathlib.Path(__file__).resolve().parent


def ids_of(model, text):
    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    return tokenizer.encode(pathlib.Path(text).read_text(encoding="utf-8")).ids


def last_line(run):
    lines = (run.stderr or run.stdout).strip().splitlines()
    return lines[-1][:200] if lines else f"exit {run.returncode}"


def ours(args, windows, out):
    command = [args.optimize, "--quant", "int4", args.model, "-o", out, "--calibration", windows]
    command += ["--samples", args.samples, "--seq-len", args.length, "--group-size", args.group]
    if args.without:
        command += ["--ignore", f"*{args.without}"]
    return [*command, "--no-gate", "--quiet"], out


def rival(tool):
    def command(args, windows, out):
        script = [HERE / "rival_quantize.py", tool, args.model, windows, args.group, out]
        if tool == "gptqmodel":
            script.append(f"{out}-dense")
        if args.without:
            script += ["--without", args.without]
        python = pathlib.Path(args.peers) / tool / "bin" / "python"
        return [python, *script], f"{out}-dense" if tool == "gptqmodel" else out

    return command


TOOLS = {"optimize": ours, "gptqmodel": rival("gptqmodel"), "llmcompressor": rival("llmcompressor")}


def run(command):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


def score(args, artifact, tokens):
    command = [args.optimize, "eval", artifact, "--baseline", args.model, "--tokens", tokens]
    made = run([*command, "--window", args.length, "--json", "--quiet"])
    if made.returncode != 0:
        sys.exit(f"{artifact}: {made.stderr}")
    metrics = json.loads(made.stdout)
    return metrics["perplexity"], metrics["baseline"]["kl_divergence"], metrics["baseline"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("optimize", "peers", "model", "calibration", "evaluation"):
        parser.add_argument(name)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=40_000)
    parser.add_argument("--without", help="a projection that every tool leaves alone")
    args = parser.parse_args()
    scratch = pathlib.Path(tempfile.mkdtemp())
    tokens = scratch / "tokens"
    evaluated = ids_of(args.model, args.evaluation)[: args.tokens]
    tokens.write_text(" ".join(map(str, evaluated)))
    text = ids_of(args.model, args.calibration)
    scores = {tool: [] for tool in TOOLS}
    original = None
    for seed in range(args.draws):
        draw = random.Random(seed)
        begins = [draw.randrange(len(text) - args.length) for _ in range(args.samples)]
        windows = scratch / f"draw{seed}.jsonl"
        lines = (json.dumps(text[at : at + args.length]) for at in begins)
        windows.write_text("\n".join(lines) + "\n")
        for tool, command in TOOLS.items():
            words, artifact = command(args, windows, scratch / f"{tool}{seed}")
            made = run(words)
            line = {"tool": tool, "draw": seed}
            if made.returncode != 0:
                line["failed"] = last_line(made)
            else:
                perplexity, divergence, baseline = score(args, artifact, tokens)
                original = baseline["perplexity"]
                scores[tool].append((perplexity, divergence))
                line |= {"perplexity": perplexity, "kl_divergence": divergence}
            print(json.dumps(line), flush=True)
            shutil.rmtree(scratch / f"{tool}{seed}", ignore_errors=True)
            shutil.rmtree(scratch / f"{tool}{seed}-dense", ignore_errors=True)
    shutil.rmtree(scratch)
    print(f"original: perplexity {original}, {len(evaluated)} tokens")
    for tool, found in scores.items():
        for metric, values in zip(("perplexity", "KL divergence"), zip(*found)):
            error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
            print(f"{tool}: {metric} {statistics.mean(values):.6f} +- {error:.6f}")


if __name__ == "__main__":
    main()
