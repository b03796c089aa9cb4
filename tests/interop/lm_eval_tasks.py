"""Task metrics and token pairs, by lm-evaluation-harness's own code.

    lm_eval_tasks.py TASK.jsonl ANSWERS.jsonl [METRICS.json] [--tokenizer DIR] [--model DIR]

TASK.jsonl      the task, as `optimize eval --task` reads it
ANSWERS.jsonl   a line a request: {"item", "choice", "logprob", "greedy", "context_tokens",
                "continuation_tokens"}, as `optimize eval --task FILE --logprobs` writes it;
                the tokens may be counts or lists of ids, or be left out
METRICS.json    what `optimize eval --task FILE --json` printed; compared with the harness's
--tokenizer     the folder of the model's tokenizer.json: the harness cuts each pair too, and the
                tokens of ANSWERS.jsonl are compared with its own
--model         a checkpoint: the harness answers every request with transformers in float32, and
                the log-likelihoods of ANSWERS.jsonl must be its own to 1e-4, and the scores equal

Without METRICS.json the harness's metrics (and with --tokenizer its ids) are printed: this is how
tests/fixtures/tasks/*_expected.json were made. Exits with 1 if anything differs.
"""

import argparse
import json
import math
import pathlib
import sys

from lm_eval.api.metrics import mean, mean_stderr, perplexity
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import MultipleChoiceTask

TOLERANCE = 1e-9

# Log-likelihoods come from two forwards in float32.
FORWARD_TOLERANCE = 1e-4


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def contexts(doc):
    """The harness's (context, continuation) strings of an item (arc_easy.yaml, lambada)."""
    if "choices" in doc:
        query = doc["query"]
        context = query if query.endswith("Answer:") else query + "\nAnswer:"
        return [(context, " " + choice) for choice in doc["choices"]]
    return [(doc["context"], " " + doc["continuation"])]


class Cutter(TemplateLM):
    """A model that only tokenizes: the harness's cutting of pairs around a tokenizer.json."""

    backend = "causal"

    def __init__(self, folder):
        import tokenizers

        super().__init__()
        self.inner = tokenizers.Tokenizer.from_file(str(pathlib.Path(folder) / "tokenizer.json"))
        self.inner.no_truncation()
        self.inner.no_padding()
        first = self.inner.encode("a").ids
        plain = self.inner.encode("a", add_special_tokens=False).ids
        self.bos = None if first[: len(plain)] == plain else first[0]
        self.pairs = None

    @property
    def prefix_token_id(self):
        return self.bos

    @property
    def eot_token_id(self):
        return self.bos

    def tok_encode(self, string, add_special_tokens=None, **_):
        # As models/huggingface.py: no second begin token before a text that is spelt with one.
        if add_special_tokens is None and self.bos is not None:
            add_special_tokens = not string.startswith(self.inner.id_to_token(self.bos))
        return self.inner.encode(string, add_special_tokens=add_special_tokens is not False).ids

    def _loglikelihood_tokens(self, requests, **_):
        self.pairs = [(context, continuation) for _, context, continuation in requests]
        return [(0.0, False)] * len(requests)

    def loglikelihood_rolling(self, requests, **_):
        raise NotImplementedError

    def generate_until(self, requests, **_):
        raise NotImplementedError


class Pair:
    def __init__(self, args):
        self.args = args


def answered_by_harness(folder, docs):
    """Every request answered by the harness's own model class, as ANSWERS.jsonl holds them."""
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=8)
    places = [(i, c) for i, doc in enumerate(docs) for c in range(len(contexts(doc)))]
    requests = [Pair(pair) for doc in docs for pair in contexts(doc)]
    results = model.loglikelihood(requests, disable_tqdm=True)
    return [
        {"item": item, "choice": choice, "logprob": logprob, "greedy": bool(greedy)}
        for (item, choice), (logprob, greedy) in zip(places, results)
    ]


def compare_answers(ours, theirs, docs):
    """Complaints: log-likelihoods that differ, and scores that do."""
    wrong = []
    for a, b in zip(ours, theirs):
        if not math.isclose(
            a["logprob"], b["logprob"], rel_tol=FORWARD_TOLERANCE, abs_tol=FORWARD_TOLERANCE
        ):
            at = f"item {a['item']}, choice {a['choice']}"
            wrong.append(f"{at}: log-likelihood {a['logprob']}, the harness's {b['logprob']}")
    ours, theirs = metrics(docs, ours), metrics(docs, theirs)
    for key in theirs:
        tolerance = FORWARD_TOLERANCE if key == "perplexity" else TOLERANCE
        if not same(ours[key], theirs[key], tolerance):
            wrong.append(f"{key} is {ours[key]}, by the harness's own forward {theirs[key]}")
    scores = ", ".join(f"{key} {ours[key]} and {theirs[key]}" for key in theirs if key != "items")
    print(f"{len(docs)} items, ours and by the harness's own forward: {scores}")
    return wrong


def metrics(docs, answers):
    """The harness's per-item metrics and their aggregation."""
    given = {(a["item"], a["choice"]): (a["logprob"], a["greedy"]) for a in answers}
    if len(given) != len(answers):
        sys.exit("a request is answered twice")
    results = [[given.pop((i, c)) for c in range(len(contexts(d)))] for i, d in enumerate(docs)]
    if given:
        sys.exit(f"{len(given)} answers belong to no request")

    def error(values):
        return mean_stderr(values) if len(values) > 1 else None

    out = {"items": len(docs)}
    if "choices" in docs[0]:
        own = [MultipleChoiceTask.process_results(None, d, r) for d, r in zip(docs, results)]
        for key in ("acc", "acc_norm"):
            values = [o[key] for o in own]
            out |= {key: mean(values), key + "_stderr": error(values)}
    else:
        hits = [int(greedy) for ((_, greedy),) in results]
        out |= {"acc": mean(hits), "acc_stderr": error(hits)}
        out |= {"perplexity": perplexity([logprob for ((logprob, _),) in results])}
    return out


def same(ours, theirs, tolerance=TOLERANCE):
    if ours is None or theirs is None:
        return ours is theirs
    return math.isclose(ours, theirs, rel_tol=tolerance, abs_tol=tolerance)


def same_tokens(ours, theirs):
    return ours == (theirs if isinstance(ours, list) else len(theirs))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("task", type=pathlib.Path)
    parser.add_argument("answers", type=pathlib.Path)
    parser.add_argument("metrics", type=pathlib.Path, nargs="?")
    parser.add_argument("--tokenizer")
    parser.add_argument("--model")
    arguments = parser.parse_args()
    docs, answers = read_lines(arguments.task), read_lines(arguments.answers)
    theirs = metrics(docs, answers)
    wrong = []
    pairs = None
    answers.sort(key=lambda a: (a["item"], a["choice"]))
    if arguments.model:
        wrong += compare_answers(answers, answered_by_harness(arguments.model, docs), docs)
    if arguments.tokenizer:
        cutter = Cutter(arguments.tokenizer)
        requests = [Pair(pair) for doc in docs for pair in contexts(doc)]
        cutter.loglikelihood(requests, disable_tqdm=True)
        pairs = cutter.pairs
        for answer, pair in zip(answers, pairs):
            for key, ids in zip(("context_tokens", "continuation_tokens"), pair):
                if key in answer and not same_tokens(answer[key], ids):
                    at = f"item {answer['item']}, choice {answer['choice']}"
                    wrong.append(f"{at}: {key} is {answer[key]}, the harness's ids are {ids}")
    if arguments.metrics:
        ours = json.loads(arguments.metrics.read_text())
        ours = ours.get("metrics", ours)
        for key, value in theirs.items():
            if not same(ours.get(key), value):
                wrong.append(f"{key} is {ours.get(key)}, the harness's is {value}")
        print(f"{len(theirs)} metrics and {len(pairs or [])} pairs compared: {len(wrong)} differ")
    else:
        print(json.dumps(theirs | ({"requests": pairs} if pairs else {})))
    for line in wrong[:20]:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
