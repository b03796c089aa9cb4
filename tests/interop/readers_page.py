"""docs/READERS.md and tests/fixtures/readers.json: written from what readers.py found, and held
against it."""

import json

HEAD = """# What readers make of the artifacts

Made by `python readers.py OPTIMIZE` in `tests/interop`; `tests/interop/run readers` fails where it no
longer holds. Every kind of artifact that `optimize` writes is made of tiny models and loaded by each
reader; its logits are held against those of the dense weights that its bytes mean, computed apart from
any reader. The same table for programs is `tests/fixtures/readers.json`.

- **right**: logits in float32 within 1e-4 of the largest one. vLLM computes in bf16: a mean divergence
  of at most 0.01 nat a token.
- *rounded*: the same, once each weight, code x scale, is rounded to the dtype of the scale.
- **WRONG**: it loads without an error, and says something else.
- refused: it does not load; why is below the table.
- ?: not tried. vLLM runs heads of 64 and more, stories260k has heads of 8.

int4 is symmetric, in groups of 128, by GPTQ, unless said otherwise; int8 has a scale a row. "As it is"
is `from_pretrained(FOLDER)`; `dequantize=True` is
`from_pretrained(FOLDER, quantization_config=CompressedTensorsConfig(dequantize=True))`. vLLM is its CPU
build: what its kernels for GPUs take, int8 among it, is not tried here.
"""


TAIL = """
## What to do

- One grid in the whole artifact (no `--head` of another grid, widths that the group divides) loads in
  the most places; symmetric int4 in all that are not mlx-lm.
- `--asym` with one grid loads everywhere: the artifact says that it is to be decoded while it loads
  (see below). Beside a second grid, a head on a grid or a width that the group does not divide,
  transformers takes compressed-tensors 0.17.1 at most.
- `--head int8` beside int4 layers: load it as it is. Under `dequantize=True` the head is read as 4 bits,
  without an error.
- A tensor carried over: vLLM refuses the source for the same reason.
- mlx-lm: convert the source with `mlx_lm.convert`; it has no loader for this format in Llama, Mistral
  and Qwen.

## Other spellings

What is written, with one grid, is the first of these and the one with an int4 head. Artifacts edited by
hand, in the readers above:

| edit | transformers as it is, 0.16 to 0.17.1 | 0.18 to 0.20.1 | `dequantize=True` | vLLM |
|---|---|---|---|---|
| asym: `"dequantize": true` (or `"run_compressed": false`) in `quantization_config` | right | right | right | right |
| asym: zero points packed along rows, then filled up with zeros to a row an output | refused | right | right | refused |
| asym: unpacked zero points, int8 | refused | refused | refused | refused |
| asym: unpacked zero points, int32 | refused | **WRONG** | **WRONG** | refused |
| asym: zero points packed along groups | refused | refused | **WRONG** | refused |
| asym: strategy `block` of 1 x 128 with int8 zero points | right | right | right | refused |
| asym: `quantization_status` of `frozen` | refused | refused | right | right |
| int4 with an int4 head: targets `["Linear", "lm_head"]` | right | right | right | right |
| asym with an int4 head: the head asymmetric with zero points of 8, one group, the same targets, `"dequantize": true` | right | right | right | right |
| int4 with an int8 head: the head's group first | right | right | refused | refused (int8) |
| stories260k, groups as wide as the row beside rows: the group that is per channel first | right | right | right | ? |
| groups beside a width that falls back: the group that is per channel first | right | right | 0.16 to 0.18 right, then refused | right |

`"dequantize": true` in the file makes `from_pretrained(FOLDER)` behave as `dequantize=True` does, so with
two grids it would make right ones wrong, and scales in bf16 are rounded; both are decompressed before
the first token either way, so it costs no memory. transformers 5.19 takes the key too.
"""


def column(row):
    """`reader version` or `reader version, way`."""
    return f"{row['reader']} {row['version']}" + ("" if row["way"] == "as it is" else f", {row['way']}")


def table(kinds, shapes, rows):
    """What readers.json holds."""
    # Versions of one reader, loading in one way, side by side.
    ways = list(dict.fromkeys((row["reader"], row["way"]) for row in rows))
    rows = sorted(rows, key=lambda row: ways.index((row["reader"], row["way"])))
    columns = list(dict.fromkeys(column(row) for row in rows))
    found = {(row["kind"], column(row)): row for row in rows}
    entries = []
    for name, model, options in kinds:
        mine = {c: found[name, c] for c in columns if (name, c) in found}
        entries.append(
            {
                "kind": name,
                "model": model,
                "options": f"--quant {options}",
                **shapes[name],
                "verdicts": {c: row["verdict"] for c, row in mine.items()},
                "why": {c: row["why"] for c, row in mine.items() if row["why"]},
            }
        )
    return {"readers": columns, "kinds": entries}


def ranges(columns, kinds):
    """[(heading, first column)]: versions of one reader that follow each other and agree everywhere."""
    found = []
    for one in columns:
        says = [kind["verdicts"].get(one) for kind in kinds]
        name, comma, way = one.partition(", dequantize")
        reader, _, version = name.rpartition(" ")
        last = found[-1] if found else None
        if last and last["reader"] == (reader, comma + way) and last["says"] == says:
            last["to"] = version
        else:
            found.append({"reader": (reader, comma + way), "says": says, "from": version, "to": version, "column": one})
    for entry in found:
        span = entry["from"] if entry["from"] == entry["to"] else f"{entry['from']} to {entry['to']}"
        entry["heading"] = f"{entry['reader'][0]} {span}{entry['reader'][1]}"
    return found


def page(content):
    shown = {"right": "**right**", "rounded": "*rounded*", "wrong": "**WRONG**", "refused": "refused"}
    kinds = content["kinds"]
    columns = ranges(content["readers"], kinds)
    lines = [HEAD, "Readers:", ""]
    lines += [f"- ({n}) {entry['heading']}" for n, entry in enumerate(columns, 1)]
    lines += ["", "| kind | options | " + " | ".join(f"({n})" for n in range(1, len(columns) + 1)) + " |"]
    lines += ["|---" * (len(columns) + 2) + "|"]
    for kind in kinds:
        cells = [shown.get(kind["verdicts"].get(entry["column"]), "?") for entry in columns]
        options = kind["options"].removeprefix("--quant ").replace("*", "\\*")
        lines.append(f"| {kind['kind']} | {options} | " + " | ".join(cells) + " |")
    lines += ["", "## Why", ""]
    for n, entry in enumerate(columns, 1):
        reasons = {}
        for kind in kinds:
            verdict, why = kind["verdicts"].get(entry["column"]), kind["why"].get(entry["column"])
            if verdict in ("wrong", "refused"):
                # Only the number of parameters differs among models.
                why = "".join("N" if c.isdigit() and why.startswith("ValueError: Received") else c for c in why)
                reasons.setdefault(why.replace("NN", "N").replace("NN", "N"), []).append(kind["kind"])
        for why, of in reasons.items():
            of = "; ".join(of) if len(of) < len(kinds) // 2 else f"{len(of)} kinds"
            lines.append(f"- ({n}) `{why.replace('`', '')}`: {of}")
    return "\n".join(lines) + "\n" + TAIL


FORMATS_HEAD = """
## Other formats

Made by `python formats.py OPTIMIZE` in `tests/interop`; `tests/interop/run formats` fails where it no longer
holds. `gptq`, `gptq_v2`, `awq`, `int-quantized` and the widths of `compressed-tensors` beside 4 and 8, by the
nearest rounding in groups of 128 unless said otherwise; the same for programs is
`tests/fixtures/formats.json`. GPTQModel computes in float16, and is judged as vLLM is. A negative scale:
the scales of the artifact were given random signs. Act-order: its columns were put into groups in random
order. A cell that is empty was not tried.

"""


def formats_section(content):
    """The part of the page that is about formats.py's kinds."""
    shown = {"right": "**right**", "rounded": "*rounded*", "wrong": "**WRONG**", "refused": "refused"}
    columns, kinds = content["readers"], content["kinds"]
    lines = [f"- ({n}) {column}" for n, column in enumerate(columns, 1)]
    lines += ["", "| kind | " + " | ".join(f"({n})" for n in range(1, len(columns) + 1)) + " |"]
    lines += ["|---" * (len(columns) + 1) + "|"]
    for kind in kinds:
        cells = [shown.get(kind["verdicts"].get(column), "") for column in columns]
        lines.append(f"| {kind['kind']} | " + " | ".join(cells) + " |")
    lines.append("")
    for n, column in enumerate(columns, 1):
        reasons = {}
        for kind in kinds:
            if kind["verdicts"].get(column) in ("wrong", "refused"):
                reasons.setdefault(kind["why"][column].replace("`", ""), []).append(kind["kind"])
        lines += [f"- ({n}) `{why}`: {'; '.join(of)}" for why, of in reasons.items()]
    return FORMATS_HEAD + "\n".join(lines) + "\n"


def formats_of(path):
    """The committed findings about formats, if there are some."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def whole_page(content, formats):
    return page(content) + (formats_section(formats) if formats else "")


def write_formats(path, content):
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    document = path.parent.parent.parent / "docs/READERS.md"
    committed = json.loads((path.parent / "readers.json").read_text(encoding="utf-8"))
    document.write_text(whole_page(committed, content), encoding="utf-8")
    print(f"wrote {path.name} and {document.name}")
    return 0


def check_formats(path, content):
    """Each verdict found is the committed one; readers that are not here are passed over."""
    before = {kind["kind"]: kind["verdicts"] for kind in formats_of(path)["kinds"]}
    wrong, tried = [], 0
    for kind in content["kinds"]:
        for reader, verdict in kind["verdicts"].items():
            tried += 1
            said = before.get(kind["kind"], {}).get(reader, "nothing")
            if said != verdict:
                wrong.append(f"{kind['kind']}, {reader}: {verdict} ({kind['why'].get(reader)}), committed {said}")
    print("\n".join(wrong) or f"{tried} verdicts of {len(content['readers'])} readers are the committed ones")
    return 1 if wrong else 0


def write(path, document, content):
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    document.write_text(whole_page(content, formats_of(path.parent / "formats.json")), encoding="utf-8")
    print(f"wrote {path.name} and {document.name}")
    return 0


def check(path, document, content):
    """Each verdict found is the committed one; readers that are not here are passed over."""
    committed = json.loads(path.read_text(encoding="utf-8"))
    before = {kind["kind"]: kind for kind in committed["kinds"]}
    wrong = [f"{name}: is no kind any more" for name in before.keys() - {k["kind"] for k in content["kinds"]}]
    tried = 0
    for kind in content["kinds"]:
        old = before.get(kind["kind"], {"verdicts": {}})
        for reader, verdict in kind["verdicts"].items():
            tried += 1
            said = old["verdicts"].get(reader, "nothing")
            if said != verdict:
                wrong.append(f"{kind['kind']}, {reader}: {verdict} ({kind['why'].get(reader)}), committed {said}")
        for key in ("options", "grids", "head", "scales"):
            if old.get(key) != kind[key]:
                wrong.append(f"{kind['kind']}: {key} {kind[key]}, committed {old.get(key)}")
    if document.read_text(encoding="utf-8") != whole_page(committed, formats_of(path.parent / "formats.json")):
        wrong.append(f"{document.name} is not what {path.name} says")
    print("\n".join(wrong) or f"{tried} verdicts of {len(content['readers'])} readers are the committed ones")
    return 1 if wrong else 0
