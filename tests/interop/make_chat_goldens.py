#!/usr/bin/env python3
"""Makes goldens.json of crates/text/tests/fixtures/chat: conversations rendered by transformers.

Every template of the fixture's templates/ folder renders every conversation, with and without the
generation prompt and tools, as transformers' `apply_chat_template` does: keys of messages that are null are left
out, the rest is its `render_jinja_template`. The clock stands still. A
template that refuses a conversation (`raise_exception`) has its words recorded, one that fails
otherwise only that it fails.

    make_chat_goldens.py                    writes goldens.json
    make_chat_goldens.py --check            renders again and compares
    make_chat_goldens.py --templates DIR    takes other templates, and writes goldens.json there
"""

import argparse
import datetime
import json
import platform
import sys
from pathlib import Path

import jinja2
import transformers
from transformers.utils import chat_template_utils

ROOT = Path(__file__).resolve().parent.parent.parent
FIXTURES = ROOT / "crates" / "text" / "tests" / "fixtures" / "chat"
NOW = datetime.datetime(2024, 7, 26, 0, 0, 0)

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Malm\u00f6", "days": 2, "exact": True}},
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'The sky\'s state, "now" or later \u2014 <b>',
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Where"},
                    "days": {"type": "integer", "default": 1, "enum": [1, 2, 7]},
                    "exact": {"type": "boolean"},
                },
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {}}},
]

CONVERSATIONS = {
    "question": [{"role": "user", "content": "What is the tide?\nAnd why? "}],
    "turns": [
        {"role": "system", "content": "  You answer briefly. /no_think\n"},
        {"role": "user", "content": "\u00bfQu\u00e9 es \"caf\u00e9\"? <b>&amp; 'tea'</b>\ttab"},
        {"role": "assistant", "content": "\n\nA drink \u2014 \u65e5\u672c\u8a9e \U0001f999.\n"},
        {"role": "user", "content": " Thanks, the answer is fine. "},
    ],
    "tools": [
        {"role": "user", "content": "Weather in Malm\u00f6?", "name": "Ana"},
        {
            "role": "assistant",
            "content": "<think>\nlook it up\n</think>\n\nOne moment.",
            "tool_calls": [CALL],
        },
        {"role": "tool", "content": '{"sky": "clear", "c": 21.5}', "tool_call_id": "call00001"},
        {"role": "assistant", "content": "Clear, 21.5.", "reasoning": "it says so"},
    ],
    "call": [
        {"role": "system", "content": "Use tools."},
        {"role": "user", "content": "Again"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
    ],
    "thought": [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4", "reasoning_content": "two\nand two\n"},
        {"role": "user", "content": "And 3?"},
        {"role": "assistant", "content": "<think>\n\n</think>\n\n7", "thinking": None},
        {"role": "user", "content": "/think Why?"},
    ],
}


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def render(source, messages, tools, prompt):
    """What a case is expected to give: text, refusal or failure."""
    try:
        texts, _ = chat_template_utils.render_jinja_template(
            conversations=[[{k: v for k, v in m.items() if v is not None} for m in messages]],
            chat_template=source,
            tools=tools,
            add_generation_prompt=prompt,
            **TOKENS,
        )
        return {"text": texts[0]}
    except jinja2.exceptions.TemplateSyntaxError:
        raise
    except jinja2.exceptions.TemplateError as error:
        # An undefined value that is used is one too, and is worded by the interpreter.
        if type(error) is jinja2.exceptions.TemplateError:
            return {"refused": str(error)}
        return {"failed": True}
    except TypeError:
        return {"failed": True}


def goldens(folder):
    cases = []
    for path in sorted(folder.glob("*.jinja")):
        source = path.read_text(encoding="utf-8")
        for name, messages in CONVERSATIONS.items():
            for prompt, tools in ((False, None), (True, None), (True, TOOLS)):
                case = {"template": path.name, "conversation": name, "prompt": prompt}
                case["tools"] = tools is not None
                cases.append(case | render(source, messages, tools, prompt))
    return {
        "versions": {
            "jinja2": jinja2.__version__,
            "python": platform.python_version(),
            "transformers": transformers.__version__,
        },
        "now": int(NOW.replace(tzinfo=datetime.timezone.utc).timestamp()),
        "tokens": TOKENS,
        "conversations": CONVERSATIONS,
        "tools": TOOLS,
        "cases": cases,
    }


def check(made, path):
    committed = json.loads(path.read_text(encoding="utf-8"))
    failed = 0
    for key in ("now", "tokens", "conversations", "tools"):
        if made[key] != committed[key]:
            failed += 1
            print(f"FAIL {key} differs")
    if len(made["cases"]) != len(committed["cases"]):
        failed += 1
        print(f"FAIL {len(made['cases'])} cases, {len(committed['cases'])} committed")
    for ours, theirs in zip(made["cases"], committed["cases"]):
        if ours != theirs:
            failed += 1
            print(f"FAIL {ours['template']} {ours['conversation']} prompt={ours['prompt']} tools={ours['tools']}")
    print(f"{len(made['cases'])} cases, {failed} differ")
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--templates", type=Path, help="a folder of other templates")
    parser.add_argument("--output", type=Path, help="where their goldens go, else beside them")
    arguments = parser.parse_args()
    chat_template_utils.datetime = Clock
    folder = arguments.templates or FIXTURES / "templates"
    path = arguments.output or (arguments.templates or FIXTURES) / "goldens.json"
    made = goldens(folder)
    if arguments.check:
        return check(made, path)
    path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(made['cases'])} cases")
    return 0


if __name__ == "__main__":
    sys.exit(main())
