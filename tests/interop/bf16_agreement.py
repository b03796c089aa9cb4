"""How far transformers in bf16 is from itself in f32, teacher-forced on the first tokens of a text: what
a GPU's results are put beside.

    python bf16_agreement.py TOKENS TEXT MODEL...
"""

import math
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, __version__

WINDOW = 256


def main():
    count, text, models = int(sys.argv[1]), open(sys.argv[2]).read(), sys.argv[3:]
    print(f"transformers {__version__}, torch {torch.__version__}, bf16 beside f32")
    for model in models:
        tokenizer = AutoTokenizer.from_pretrained(model)
        ids = tokenizer(text[: count * 12], return_tensors="pt").input_ids[0][:count]
        exact = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        device = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        seen = difference = parted = margin = 0
        nll = [0.0, 0.0]
        for window in ids.split(min(WINDOW, exact.config.max_position_embeddings)):
            with torch.no_grad():
                want = exact(window[None]).logits[0, :-1].double()
                got = device(window[None]).logits[0, :-1].double()
            next_ones = window[1:, None]
            logprobs = [x.log_softmax(-1).gather(1, next_ones)[:, 0] for x in (want, got)]
            nll = [n - x.sum().item() for n, x in zip(nll, logprobs)]
            seen += len(next_ones)
            difference += (logprobs[0] - logprobs[1]).abs().sum().item()
            best, other = want.argmax(-1), got.argmax(-1)
            parted += (best != other).sum().item()
            lead = want.gather(1, best[:, None]) - want.gather(1, other[:, None])
            margin = max(margin, lead.max().item())
        perplexities = [math.exp(n / seen) for n in nll]
        print(
            f"{model}: {seen} tokens: mean difference {difference / seen:.4f} nat, another first choice "
            f"at {100 * parted / seen:.2f} % (margin at most {margin:.3f} nat), perplexity "
            f"{perplexities[0]:.4f} -> {perplexities[1]:.4f} "
            f"({100 * (perplexities[1] / perplexities[0] - 1):+.3f} %)"
        )


main()
