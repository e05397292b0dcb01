"""Writes templates/renderings.json: what transformers renders of the templates beside it.

    pip install transformers jinja2   # in an environment of its own
    python tests/gateway/make_renderings.py

The templates are written after the structure of the families they are named for, in the constructs these use.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "templates"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}},
}
SECOND = {"id": "123456789", "type": "function", "function": {"name": "get_time", "arguments": {}}}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "<the> city's name"}, "days": {"type": "integer"}},
    "required": ["city"],
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "get_weather", "description": "Weather & more", "parameters": PARAMETERS},
    },
    {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}},
]
USER, ANSWER = {"role": "user", "content": " What's up? "}, {"role": "assistant", "content": "Not much."}
SYSTEM = {"role": "system", "content": "Be brief."}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "name": "get_weather", "content": '{"sky": "clear"}'}
THOUGHT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nNot much."}
REASONED = {"role": "assistant", "content": "Not much.", "reasoning_content": "hm"}
CALLER = {"role": "assistant", "content": "", "tool_calls": [CALL]}
CASES: dict[str, dict[str, Any]] = {
    "one turn": {"messages": [USER]},
    "system": {"messages": [SYSTEM, USER]},
    "turns": {"messages": [SYSTEM, USER, ANSWER, USER]},
    "no prompt": {"messages": [USER, ANSWER], "add_generation_prompt": False},
    "thinking off": {"messages": [USER], "options": {"enable_thinking": False}},
    "thoughts": {"messages": [USER, THOUGHT, USER]},
    "reasoning": {"messages": [USER, REASONED], "add_generation_prompt": False},
    "tools": {"messages": [SYSTEM, USER], "tools": TOOLS},
    "tools alone": {"messages": [USER], "tools": TOOLS},
    "call": {"messages": [USER, CALLER, RESULT], "tools": TOOLS},
    "calls": {"messages": [USER, {**CALLER, "tool_calls": [CALL, SECOND]}, RESULT, RESULT], "tools": TOOLS},
    "unfinished": {"messages": [USER, {"role": "assistant", "content": "Not "}], "continue_final_message": True},
}


def main() -> None:
    """Render every case of every template; a refusal is kept as its words."""
    from transformers.utils.chat_template_utils import render_jinja_template

    renderings: dict[str, dict[str, dict[str, str]]] = {}
    for path in sorted(FOLDER.glob("*.jinja")):
        own = renderings[path.stem] = {}
        for name, case in CASES.items():
            continues = case.get("continue_final_message", False)
            try:
                (text,), _ = render_jinja_template(
                    conversations=[case["messages"]],
                    tools=case.get("tools"),
                    chat_template=path.read_text(encoding="utf-8"),
                    add_generation_prompt=not continues and case.get("add_generation_prompt", True),
                    continue_final_message=continues,
                    **TOKENS,
                    **case.get("options", {}),
                )
                own[name] = {"text": text}
            except Exception as error:
                own[name] = {"error": f"{type(error).__name__}: {error}"}
    (FOLDER / "renderings.json").write_text(
        json.dumps(renderings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
