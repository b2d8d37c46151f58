"""Find in what a program printed the line that says why it failed.

The last line seldom does: a traceback's message may go on with advice, a C library that aborts
prints a backtrace, and pip ends with a notice.
"""

from __future__ import annotations

import re

_TRACEBACK = "Traceback (most recent call last):"
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Timeout)(?::|$)")
_ABORT = re.compile(r"GGML_ASSERT|GGML_ABORT|terminate called|what\(\):", re.IGNORECASE)
_ERROR = re.compile(r"(?:error|fatal)\b.*|.*\berror\b[^:]*: ", re.IGNORECASE)
_MAX_CHARACTERS = 400


def cause_of(output: str) -> str:
    """The exception of the last traceback; else the reason of an abort; else the first line that
    reports an error; else the last line that is no warning. Without its full stop."""
    lines = [line.strip() for line in output.splitlines()]
    said = [line for line in lines if line and "Warning" not in line and set(line) - set("^~ ")]
    exceptions = [line for line in said if _EXCEPTION.match(line)]
    raised = exceptions[-1:] if _TRACEBACK in lines else []
    aborts = [line for line in said if _ABORT.search(line)]
    errors = [line for line in said if _ERROR.match(line)]
    found = raised or aborts[:1] or errors[:1] or said[-1:]
    return found[0].rstrip(".")[:_MAX_CHARACTERS] if found else "it gave no message"
