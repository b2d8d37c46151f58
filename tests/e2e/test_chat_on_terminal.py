"""`edgesdk chat` on a real terminal."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import MAIN, edgesdk, environment

pytestmark = [pytest.mark.e2e, pytest.mark.integration]
pexpect = pytest.importorskip("pexpect")
pytest.importorskip("llama_cpp")

_PROMPT = "\n> "
_RECEIPT = r"tokens in.*peak.*memory"


class Terminal:
    """A chat in a pseudo-terminal of 100 columns and 24 rows."""

    def __init__(self, *arguments: str) -> None:
        self.child = pexpect.spawn(
            MAIN[0],
            [*MAIN[1:], "chat", *arguments],
            env=environment(TERM="xterm-256color"),
            dimensions=(24, 100),
            encoding="utf-8",
            codec_errors="replace",
            timeout=120,
            # Else a test run in the background would hand its deafness to Ctrl-C on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def ask(self, line: str) -> str:
        """Type a line; what the screen says until the next prompt, without escape sequences."""
        self.child.sendline(line)
        return self.until_prompt()

    def until_prompt(self) -> str:
        self.child.expect(r"\n(\x1b\[\?2004h)?> ")
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", self.child.before)

    def leave(self) -> int:
        self.child.expect(pexpect.EOF)
        self.child.close()
        return int(self.child.exitstatus)


@pytest.fixture
def terminal(smollm2_gguf: Path) -> Iterator[Terminal]:
    opened = Terminal(str(smollm2_gguf), "--threads", "1", "--max-tokens", "400")
    yield opened
    opened.child.close(force=True)


def test_a_whole_visit(terminal: Terminal, tmp_path: Path) -> None:
    greeting = terminal.until_prompt()
    assert "/help for help" in greeting

    assert "/save PATH" in terminal.ask("/help")
    assert "Did you mean /help?" in terminal.ask("/hlep")

    answer = terminal.ask("Say hello.")
    assert re.search(_RECEIPT, answer, re.DOTALL)

    terminal.child.sendline("Write a very long story about a dragon, with many chapters.")
    # A frame of the preview has come: the answer is under way.
    terminal.child.expect("dragon.*dragon")
    terminal.child.sendintr()
    assert "Stopped; this turn is forgotten." in terminal.until_prompt()

    assert re.search(r"\([\d,]+ cached\)", terminal.ask("And in French?"))

    saved = tmp_path / "talk.json"
    assert f"Saved to {saved.name}" in terminal.ask(f"/save {saved}").replace(
        str(tmp_path) + "/", ""
    )
    said = [m["content"] for m in json.loads(saved.read_text())["messages"] if m["role"] == "user"]
    assert said == ["Say hello.", "And in French?"]
    assert "exists already" in terminal.ask(f"/save {saved}")

    assert "forgotten" in terminal.ask("/reset")
    markdown = tmp_path / "talk.md"
    terminal.ask("/system You are a pirate.")
    terminal.ask(f"/save {markdown}")
    assert markdown.read_text() == "## System\n\nYou are a pirate.\n"

    terminal.child.sendintr()
    assert "Ctrl-D or /exit leaves" in terminal.until_prompt()
    terminal.child.sendline("/exit")
    assert terminal.leave() == 0


def test_ctrl_d_leaves(terminal: Terminal) -> None:
    terminal.until_prompt()
    terminal.child.sendeof()

    assert terminal.leave() == 0


def test_a_conversation_past_the_context_is_an_error_and_not_the_end(smollm2_gguf: Path) -> None:
    opened = Terminal(str(smollm2_gguf), "--threads", "1", "--context", "64")
    try:
        opened.until_prompt()
        assert "63 fit" in opened.ask("word " * 100)
        assert re.search(_RECEIPT, opened.ask("Hi"), re.DOTALL)
    finally:
        opened.child.close(force=True)


def test_without_a_terminal_plain_text_comes_out(smollm2_gguf: Path) -> None:
    done = edgesdk(
        "chat", str(smollm2_gguf), "--threads", "1", "--max-tokens", "8", stdin=b"Hi\n/exit\n"
    )

    assert done.returncode == 0
    assert b"\x1b" not in done.stdout
    assert b"tokens in" in done.stdout
