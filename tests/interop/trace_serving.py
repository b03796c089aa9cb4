"""Replays a trace of requests against a server of llama.cpp or vLLM, and says what its users see.

    python trace_serving.py llama|vllm URL TRACE [--count 32] [--stretch X | --alone]
                            [--ttft S --tpot S] [--vocab N] [--model NAME]

The trace is CSV of TIMESTAMP,ContextTokens,GeneratedTokens. Prompts are noise, each its own; lengths
are forced. TTFT counts from when a request was to arrive; TPOT is the mean of a request's gaps. With
limits, goodput is the requests within both a second, from the first arrival to the last token: as
`optimize bench --trace --slo` counts. Needs nothing but Python.
"""

import argparse
import csv
import datetime
import http.client
import json
import threading
import time
import urllib.parse


def trace(path, count):
    rows = list(csv.DictReader(open(path)))[:count]
    # Seven digits of a second are one more than Python reads.
    times = [datetime.datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in rows]
    return [
        ((at - times[0]).total_seconds(), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
        for at, row in zip(times, rows)
    ]


def noise(index, length, vocab):
    state, tokens = index * 7919 + 1, []
    for _ in range(length):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        tokens.append((state >> 33) % vocab)
    return tokens


def ask(args, index, prompt, output):
    """When each token came."""
    tokens = noise(index, prompt, args.vocab)
    if args.kind == "llama":
        path = "/completion"
        body = {"prompt": tokens, "n_predict": output, "ignore_eos": True, "cache_prompt": False}
    else:
        path = "/v1/completions"
        body = {"model": args.model, "prompt": tokens, "max_tokens": output, "ignore_eos": True}
    body |= {"stream": True, "temperature": 0.0}
    where = urllib.parse.urlsplit(args.url)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=3600)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(f"the server says {answer.status}: {answer.read(500)}")
    times = []
    for line in answer:
        if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
            event = json.loads(line[6:])
            last = event.get("stop") is True and not event.get("content")
            if not last and ("content" in event or event.get("choices")):
                times.append(time.monotonic())
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=["llama", "vllm"])
    parser.add_argument("url")
    parser.add_argument("trace")
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--stretch", type=float, default=1.0)
    parser.add_argument("--alone", action="store_true", help="one request at a time")
    parser.add_argument("--ttft", type=float)
    parser.add_argument("--tpot", type=float)
    parser.add_argument("--vocab", type=int, default=150000)
    parser.add_argument("--model", default="model")
    args = parser.parse_args()
    requests = trace(args.trace, args.count)
    begun = time.monotonic()
    results = [None] * len(requests)

    def run(index, arrived):
        _, prompt, output = requests[index]
        times = ask(args, index, prompt, output)
        results[index] = (arrived, times, output)

    threads = []
    for index, (at, _, _) in enumerate(requests):
        if args.alone:
            run(index, time.monotonic())
            continue
        arrival = begun + at * args.stretch
        time.sleep(max(0.0, arrival - time.monotonic()))
        threads.append(threading.Thread(target=run, args=(index, arrival)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    seconds = max(times[-1] for _, times, _ in results) - begun
    ttft = [times[0] - arrived for arrived, times, _ in results]
    # A server may put several tokens into one event, or none for half a character.
    tpot = [(times[-1] - times[0]) / max(output - 1, 1) for _, times, output in results]
    middle = lambda values: sorted(values)[len(values) // 2]
    report = {
        "requests": len(results),
        "seconds": seconds,
        "ttft_mean": sum(ttft) / len(ttft),
        "ttft_p50": middle(ttft),
        "tpot_mean": sum(tpot) / len(tpot),
        "tpot_p50": middle(tpot),
    }
    if args.ttft and args.tpot:
        good = sum(a <= args.ttft and b <= args.tpot for a, b in zip(ttft, tpot))
        report |= {"within": good, "goodput": good / seconds}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
