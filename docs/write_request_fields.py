"""Write the table of the fields of requests: python docs/write_request_fields.py."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from edgesdk.server.api_requests import ChatRequest, CompletionRequest
from edgesdk.server.request_fields import ALIASES, IGNORED, IGNORED_PREFIX, REFUSED

PAGE = Path(__file__).parent / "reference" / "request-fields.md"
_START, _END = "<!-- fields -->\n", "<!-- end of fields -->"


def page() -> str:
    """The page with the lists as models and tables are now."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(_START)
    _, _, after = rest.partition(_END)
    return f"{before}{_START}{chr(10).join(_paragraphs())}{_END}{after}"


def _paragraphs() -> list[str]:
    chat, completion = set(ChatRequest.model_fields), set(CompletionRequest.model_fields)
    return [
        f"Done for both: {_named(chat & completion)}.\n",
        f"Done for chats: {_named(chat - completion)}.\n",
        f"Done for completions: {_named(completion - chat)}.\n",
        "| other name | of |\n|---|---|",
        *(f"| `{name}` | `{means}` |" for name, means in ALIASES.items()),
        "\n| refused | but for |\n|---|---|",
        *(f"| `{name}` | {_values(values)} |" for name, values in REFUSED.items()),
        "\n| left out, because they change no answer here | known from |\n|---|---|",
        *(f"| {_named(names)} | {who} |" for who, names in IGNORED.items()),
        f"| all that start with `{IGNORED_PREFIX}` | LiteLLM |\n",
    ]


def _named(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _values(values: tuple[object, ...]) -> str:
    return ", ".join(f"`{json.dumps(value)}`" for value in values)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
