"""What GGUF files of ours lose, against those of llama-quantize with its importance matrix, of the same types and
so of the same bytes.

gguf_quality.py OPTIMIZE LLAMA_BIN MODEL CALIBRATION EVAL [MIX ...]

LLAMA_BIN has llama-imatrix and llama-quantize. The calibration text is cut into five pieces that do not
overlap: a draw each, which both tools read. Divergences from the original are measured by `optimize eval` on
the text EVAL, for both. Prints each, and for each mix the mean ratio with its standard error."""

import json
import pathlib
import subprocess
import sys
import tempfile

DRAWS = 5
PIECE = 150_000
SCORED = 40_000


def run(*args):
    done = subprocess.run([str(arg) for arg in args], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{args}: {done.stderr[-1500:]}")
    return done.stdout


def main(optimize, llama, model, calibration, text, *mixes):
    llama = pathlib.Path(llama)
    config = json.loads((pathlib.Path(model) / "config.json").read_text())
    window = min(512, config["max_position_embeddings"])
    raw = pathlib.Path(calibration).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        whole, piece, matrix = folder / "whole.gguf", folder / "piece.txt", folder / "imatrix.gguf"
        run(optimize, "convert", model, "--format", "gguf:f32", "-o", whole, "--quiet", "--no-gate")

        def loss(path):
            said = run(
                optimize, "eval", path, "--baseline", model, "--text", text, "--window", window,
                "--max-tokens", SCORED, "--path", "exact", "--quiet", "--json",
            )
            return json.loads(said)["baseline"]["kl_divergence"]

        ratios = {mix: [] for mix in mixes}
        for draw in range(DRAWS):
            begin = draw * PIECE
            begin = raw.find(b"\n", begin) + 1 if begin else 0
            piece.write_bytes(raw[begin : begin + PIECE].decode(errors="ignore").encode())
            run(llama / "llama-imatrix", "-m", whole, "-f", piece, "-o", matrix, "-c", window, "-t", 1)
            for mix in mixes:
                theirs, ours = folder / "theirs.gguf", folder / "ours.gguf"
                run(llama / "llama-quantize", "--imatrix", matrix, whole, theirs, mix.upper(), 1)
                run(
                    optimize, "--quant", mix, model, "--calibration", piece, "--samples", 4096, "--seq-len",
                    window, "--no-gate", "--force", "--quiet", "-o", ours,
                )
                sizes = [path.stat().st_size for path in (theirs, ours)]
                pair = [loss(theirs), loss(ours)]
                ratios[mix].append(pair[1] / pair[0])
                print(
                    f"{mix} draw {draw}: llama-quantize {pair[0]:.6f} in {sizes[0]} bytes, "
                    f"ours {pair[1]:.6f} in {sizes[1]}: {ratios[mix][-1]:.3f}", flush=True,
                )
        for mix, all in ratios.items():
            mean = sum(all) / len(all)
            error = (sum((x - mean) ** 2 for x in all) / (len(all) - 1) / len(all)) ** 0.5
            print(f"{mix}: {mean:.3f} +- {error:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
