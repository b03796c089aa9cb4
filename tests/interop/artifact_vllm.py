"""Holds a quantized artifact against vLLM's CPU build, teacher-forced.

    artifact_vllm.py ARTIFACT SEQUENCES.jsonl

SEQUENCES.jsonl is what `cargo run --release -p tests --example greedy` wrote of the artifact: our
greedy continuations, and for each continued position our first choice and its margin in nats. vLLM
reads the same tokens; its first choice must be ours at 98 % of the positions at least, and at every
position whose margin exceeds 0.5 nat.
"""

import json
import os
import sys

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from vllm import LLM, SamplingParams  # noqa: E402

SHARE = 0.98
MARGIN = 0.5


def main(artifact, sequences):
    lines = [json.loads(line) for line in open(sequences, encoding="utf-8")]
    longest = max(len(line["tokens"]) for line in lines)
    model = LLM(model=artifact, max_model_len=longest + 1, enforce_eager=True)
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1)
    prompts = [{"prompt_token_ids": line["tokens"]} for line in lines]
    outputs = model.generate(prompts, params, use_tqdm=False)
    positions = agreed = sure = wrong = 0
    for line, output in zip(lines, outputs, strict=True):
        for i, (ours, margin) in enumerate(zip(line["top1"], line["margin"], strict=True)):
            # Entry p of prompt_logprobs predicts token p; ours follow the prompt.
            ranked = output.prompt_logprobs[line["prompt"] + i]
            theirs = next(token for token, entry in ranked.items() if entry.rank == 1)
            positions += 1
            agreed += theirs == ours
            sure += margin > MARGIN
            wrong += margin > MARGIN and theirs != ours
    share = agreed / positions
    print(
        f"{artifact}: {100 * share:.2f} % of {positions} positions agree (bar 98 %); "
        f"of the {sure} whose margin exceeds 0.5 nat, {wrong} differ (bar 0)"
    )
    return 0 if share >= SHARE and wrong == 0 else 1


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    # vLLM's own threads sometimes abort the interpreter as it ends, when all has been said.
    os._exit(code)
