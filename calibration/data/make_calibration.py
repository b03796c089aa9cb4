#!/usr/bin/env python3
"""Makes calibration.txt, the text that a calibration takes when none is given.

    make_calibration.py FOLDER           writes calibration.txt beside this script
    make_calibration.py FOLDER --check   compares it with what would be written

FOLDER holds the public-domain texts (SOURCES says which, with their hashes); the project's own
texts are in own/, and its own code and documents are taken from the commit COMMIT of this
repository, so that the result does not change as they do. No step is random: the same inputs give
the same bytes.
"""

import argparse
import hashlib
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMMIT = "df932ab7ff0f834a002c3dec807d7db96b058b33"

# Hashes of the inputs: a figure measured with this text is about this text.
SOURCES = {
    "shakespeare.txt": "8a73136f699d7ed17260b916b0797fafdfe6213bbbcf1914ba5327134b7c863e",
    "inaugural_addresses_1901_on.txt": "83e58b3eb484f612d064aa7c5dd74761e45e61c6ec26911f3aefb423cd4d08c9",
    "genesis_english-web.txt": "214e0aff7c2d86f1ba53aa9b83de62d949c347f902da2af849600b3523bbfd33",
    "genesis_french.txt": "9949febd6c8dfac3e3bacc25c172423dd1e5bfc5682d94e707cfa3084eab8f6f",
    "genesis_swedish.txt": "8be3a6d2156dc076ebc6f824637e15e82849c13b9528543191bc92f84617b4ef",
}

CODE = [
    "docs/ARCHITECTURE.md",
    "crates/ir/src/op.rs",
    "crates/ir/src/verify.rs",
    "crates/arch/src/rope.rs",
    "crates/checkpoint/src/header.rs",
    "crates/tensor/src/lib.rs",
    "crates/text/src/check.rs",
    "crates/backend/src/numerics.rs",
    "calibration/src/tasks.rs",
    "passes/src/gptq.rs",
    "tests/interop/make_rope_goldens.py",
]

# Lines of the evaluation text that are longer than this must not occur.
LONG = 40


def read(folder, name):
    data = (folder / name).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != SOURCES[name]:
        sys.exit(f"{name}: sha256 is {found}, not {SOURCES[name]}")
    return data.decode("utf-8")


def before(text, mark):
    """The text up to the line that holds `mark`, which occurs once."""
    if text.count(mark) != 1:
        sys.exit(f"{mark!r} occurs {text.count(mark)} times")
    return text[: text.rindex("\n", 0, text.index(mark)) + 1]


def excerpts(text, share, size=6000):
    """Every so many paragraphs of about `size` characters: `share` of the text, spread over it."""
    pieces, piece = [], ""
    for paragraph in re.split(r"\n\s*\n", text):
        piece += paragraph.rstrip() + "\n\n"
        if len(piece) >= size:
            pieces.append(piece)
            piece = ""
    kept = [p for i, p in enumerate(pieces) if int((i + 1) * share) > int(i * share)]
    return "".join(kept)


def swedish(text):
    """Undoes a decoding by the wrong code page: the file's letters were bytes of code page 850."""
    text = re.sub("[\x80-\xff]", lambda m: m[0].encode("latin-1").decode("cp850"), text)
    # Its quotation marks, which were no letters of that page, came out as this sign.
    return text.replace("\u00a2", '"')


def unwrap(text):
    """Joins the lines of a paragraph; verses wrapped at 70 columns become prose."""
    return re.sub(r"(?<=\S)[ \t]*\n(?=\S)", " ", text)


def paragraphs(text, size=700):
    """Cuts running text, after the end of a sentence, into paragraphs of about `size`."""
    cut, at = [], 0
    for end in re.finditer(r'[.?!]["\']?\s+', text):
        if end.end() - at >= size:
            cut.append(text[at : end.end()].strip())
            at = end.end()
    return "\n\n".join(cut)


def own_code():
    parts = []
    for path in CODE:
        show = ["git", "-C", str(HERE), "show", f"{COMMIT}:{path}"]
        text = subprocess.run(show, check=True, capture_output=True).stdout.decode("utf-8")
        parts.append(text)
    return "\n".join(parts)


def build(folder):
    def own(name):
        return (HERE / "own" / name).read_text(encoding="utf-8")

    evaluation = (HERE / "eval.txt").read_text(encoding="utf-8")
    shakespeare = before(read(folder, "shakespeare.txt"), "Ay, what's o'clock?")
    mark = "We, the people, still believe that every citizen deserves"
    addresses = before(read(folder, "inaugural_addresses_1901_on.txt"), mark)
    # One address has its dashes decoded as Latin-1.
    addresses = addresses.replace("\u00e2\u0080\u0094", "\u2014")
    english = read(folder, "genesis_english-web.txt")
    french = read(folder, "genesis_french.txt")
    northern = swedish(read(folder, "genesis_swedish.txt"))
    parts = [
        own("articles1.txt"),
        addresses,
        own("articles2.txt"),
        own("turns.txt"),
        excerpts(shakespeare, 0.34),
        own("articles3.txt"),
        own("code.txt"),
        own_code(),
        excerpts(paragraphs(unwrap(english)), 0.45),
        excerpts(french.replace("\n", "\n\n"), 0.4),
        excerpts(unwrap(northern), 0.35),
    ]
    text = "\n\n".join(part.strip("\n") for part in parts) + "\n"
    long = {line for line in evaluation.split("\n") if len(line) > LONG}
    lines = [line.rstrip() for line in text.split("\n")]
    lines = [line for line in lines if not any(known in line for known in long)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).encode("utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the public-domain texts")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    data = build(arguments.folder)
    path = HERE / "calibration.txt"
    if arguments.check:
        same = path.read_bytes() == data
        print("ok" if same else "FAIL", hashlib.sha256(data).hexdigest(), len(data))
        return 0 if same else 1
    path.write_bytes(data)
    print(hashlib.sha256(data).hexdigest(), len(data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
