"""The README is true: its Python runs on a real model, its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from markdown_it import MarkdownIt
from support.talking_cloud import TalkingCloud, said

from edgesdk.cli.command_group import group

pytestmark = pytest.mark.e2e

README = Path(__file__).parents[2] / "README.md"
# The endpoint that stands in the README is nobody's.
ENDPOINT = "https://api.example.com/v1"


def _blocks(kind: str) -> list[str]:
    tokens = MarkdownIt().parse(README.read_text(encoding="utf-8"))
    return [t.content for t in tokens if (t.type, t.info) == (kind, "python" * (kind == "fence"))]


def test_its_python_runs_from_top_to_bottom(
    smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert smollm2_gguf.exists(), "the first block loads it by its name"
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "readme"}
    blocks = _blocks("fence")
    assert len(blocks) > 3
    with TalkingCloud(lambda body: said("Dear Ann,")) as cloud:
        for block in blocks:
            code = block.replace(ENDPOINT, cloud.url)
            exec(compile(code, "README.md", "exec", dont_inherit=True), names)
    model = names["model"]
    assert hasattr(model, "close")
    model.close()


def test_its_commands_and_their_options_exist() -> None:
    context = click.Context(group)
    lines = [line for block in _blocks("code_block") for line in block.splitlines()]
    known = [line for line in lines if line.startswith("edgesdk ")]
    assert len(known) > 5
    for line in known:
        words, _, remark = line.removeprefix("edgesdk ").partition("#")
        commands = re.findall(r"(?:^|\| *)(\w+)", words.split("  ")[0])
        assert commands, line
        for name in commands:
            command = group.get_command(context, name)
            assert command is not None, f"{line}: there is no {name}"
        options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        for option in re.findall(r"--[a-z-]+", words + remark):
            assert option in options, f"{line}: {name} has no {option}"


def test_it_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120
