"""What a docstring says about a function and about each argument.

Three styles are read: Google's `Args:` section, NumPy's underlined `Parameters`, and Sphinx's
`:param name:` lines.
"""

from __future__ import annotations

import re

_NAMES = r"(Args|Arguments|Parameters|Returns|Yields|Raises|Examples?|Notes?|See Also)"
_SECTION = re.compile(rf"^{_NAMES}:\s*$")
_UNDERLINED = re.compile(rf"^{_NAMES}\n-{{3,}}[ \t]*$", re.MULTILINE)
_NUMPY = re.compile(r"^\*{0,2}(\w+)\s*(?::.*)?()$")
_GOOGLE = re.compile(r"^\s+\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
_SPHINX = re.compile(r"^:param\s+(?:[^:]*\s)?\*{0,2}(\w+):\s*(.*)$")


def read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The description, and what is said of each argument, each on one line.

    Args:
        text: as `inspect.getdoc` gives it.
    """
    description: list[str] = []
    arguments: dict[str, list[str]] = {}
    section, current, indent = "", None, 0
    style = _NUMPY if _UNDERLINED.search(text) else _GOOGLE
    for line in _UNDERLINED.sub(r"\1:", text).splitlines():
        heading = _SECTION.match(line)
        if heading:
            section, current = heading[1], None
            continue
        depth = len(line) - len(line.lstrip())
        found = _SPHINX.match(line)
        if (
            found is None
            and section.startswith(("Arg", "Par"))
            and (not current or depth <= indent)
        ):
            found = style.match(line)
        if found:
            current, indent = found[1], depth
            arguments[current] = [found[2]]
        elif line.startswith(":"):
            section, current = "fields", None
        elif current is not None and depth > indent:
            arguments[current].append(line)
        elif not section and current is None:
            description.append(line)
    return _joined(description), {name: _joined(lines) for name, lines in arguments.items()}


def _joined(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())
