#!/usr/bin/env python3
"""Perplexity of `optimize eval` against transformers in float32, to five digits.

    perplexity.py OPTIMIZE MODEL TEXT [--window W] [--stride S] [--max-tokens N] [--llama-cpp]

Both tools encode the text once with the checkpoint's own tokenizer; windows of W begin every S
tokens; a token is scored by the first window that sees it with context. With --llama-cpp the
windows are llama-perplexity's: 512 tokens, BOS first, the second half scored. Prints one line:
both perplexities, and the tokens that each tool scored.
"""
import argparse
import json
import math
import pathlib
import subprocess
import sys

import torch
import transformers


def ours(args, extra):
    command = [args.optimize, "eval", args.model, "--text", args.text, "--json", "--quiet"] + extra
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def spans(args, tokens):
    """(begin, end, first scored position) of each window."""
    if args.llama_cpp:
        for begin in range(0, tokens - args.window + 1, args.window):
            yield begin, begin + args.window, begin + args.window // 2 + 1
        return
    seen = 0
    for begin in range(0, tokens, args.stride):
        end = min(begin + args.window, tokens)
        yield begin, end, max(seen, begin + 1)
        seen = end
        if end == tokens:
            return


def theirs(args):
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    # By bytes: reading as text would turn every \r\n into \n.
    text = pathlib.Path(args.text).read_bytes().decode()
    ids = tokenizer(text, return_tensors="pt")["input_ids"][0][: args.max_tokens]
    adds_bos = len(tokenizer("")["input_ids"]) > 0
    total, scored = 0.0, 0
    with torch.no_grad():
        for begin, end, first in spans(args, len(ids)):
            window = ids[begin:end].clone()
            if args.llama_cpp and adds_bos:
                window[0] = tokenizer("")["input_ids"][0]
            if first >= end:
                continue
            logits = model(window[None]).logits[0].double()
            logprobs = torch.log_softmax(logits, dim=-1)
            rows = torch.arange(first - 1 - begin, end - 1 - begin)
            total -= logprobs[rows, ids[first:end]].sum().item()
            scored += end - first
    return scored, math.exp(total / scored)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("optimize")
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--stride", type=int)
    parser.add_argument("--max-tokens", type=int, default=20000)
    parser.add_argument("--llama-cpp", action="store_true")
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    args.stride = args.stride or args.window
    extra = ["--window", str(args.window), "--max-tokens", str(args.max_tokens)]
    extra += ["--protocol", "llama.cpp"] if args.llama_cpp else ["--stride", str(args.stride)]
    report = ours(args, extra)
    scored, perplexity = theirs(args)
    same = report["scored"] == scored and abs(report["perplexity"] / perplexity - 1) < 1e-5
    cut = "llama.cpp" if args.llama_cpp else f"windows of {args.window} every {args.stride}"
    print(
        f"{pathlib.Path(args.model).name}, {pathlib.Path(args.text).name}, {cut}: "
        f"optimize {report['perplexity']:.6f} on {report['scored']} tokens, "
        f"transformers {transformers.__version__} {perplexity:.6f} on {scored}"
    )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
