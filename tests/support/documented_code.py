"""The code blocks of a page, and how they run: from top to bottom, in an empty folder.

A title says how a block is used: the name of a file is what it is written into, "in another
terminal" is a command that runs beside the others, "not tested: REASON" is left out.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from support.command_line import environment
from support.talking_cloud import TalkingCloud, said

BESIDE = "in another terminal"
UNTESTED = "not tested: "
# The endpoint of the pages is nobody's, and their port may be somebody's.
_ENDPOINT, _PORT = "https://api.example.com/v1", "8765"


@dataclass(frozen=True)
class DocumentedBlock:
    """A code block, and where it stands."""

    page: str
    line: int
    language: str
    title: str
    code: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def reason(self) -> str | None:
        """Why it is not run."""
        untested = self.title.startswith(UNTESTED)
        return self.title.removeprefix(UNTESTED) if untested else None

    @property
    def file(self) -> str | None:
        """What it is written into."""
        return self.title if re.fullmatch(r"[\w./-]+\.\w+", self.title) else None


def blocks_of(page: Path, root: Path) -> list[DocumentedBlock]:
    """The blocks with a fence; those without one have the language "indented"."""
    found: list[DocumentedBlock] = []
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type not in ("fence", "code_block"):
            continue
        language, _, rest = token.info.partition(" ")
        title = re.search(r'title="([^"]*)"', rest)
        found.append(
            DocumentedBlock(
                page.relative_to(root).as_posix(),
                (token.map or [0])[0] + 1,
                language if token.type == "fence" else "indented",
                "" if title is None else title[1],
                token.content,
            )
        )
    return found


def run_page(blocks: list[DocumentedBlock], parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run all blocks that are not left out, in a new folder within `parent`.

    The store is that of EDGESDK_HOME.
    """
    folder = parent / "page"
    folder.mkdir()
    monkeypatch.chdir(folder)
    scripts = str(Path(sys.executable).parent)
    env = environment(PATH=os.pathsep.join([scripts, os.environ["PATH"]]))
    names: dict[str, object] = {"__name__": "page"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with TalkingCloud(lambda body: said("Dear Ann,")) as cloud, ExitStack() as beside:
        for block in blocks:
            if block.reason is not None:
                continue
            code = block.code.replace(_ENDPOINT, cloud.url).replace(_PORT, port)
            if block.file is not None:
                Path(block.file).write_text(code, encoding="utf-8")
            elif block.title == BESIDE:
                beside.enter_context(_running(code, env, int(port)))
            elif block.language == "python":
                where = "\n" * block.line
                exec(compile(where + code, block.page, "exec", dont_inherit=True), names)
            elif block.language == "sh":
                _run(code, env, block.place)
    for value in names.values():
        if hasattr(value, "close") and not isinstance(value, type):
            value.close()


def _run(code: str, env: Mapping[str, str], place: str) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{place}: {done.stderr}"


@contextmanager
def _running(code: str, env: Mapping[str, str], port: int) -> Iterator[None]:
    """A server that is there once its port is open, until the end of the block."""
    server = subprocess.Popen(["bash", "-c", code], env=env, start_new_session=True)
    try:
        while server.poll() is None and not _open(port):
            time.sleep(0.2)
        assert server.poll() is None, f"this ended at once: {code}"
        yield
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
