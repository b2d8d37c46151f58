"""Every code block of the README and the documentation runs, or says why it does not."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import click
import pytest
from support.documented_code import BESIDE, DocumentedBlock, blocks_of, run_page
from support.tiny_models import make_tiny

from edgesdk.cli.command_group import group
from edgesdk.store import Store

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): blocks_of(path, ROOT)
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
# What may be left out, and what each command of such a block has to be about.
REASONS = {
    "installs packages": r"pip install|venv|activate|apt-get|make|compiler",
    "builds an app": r"pyinstaller|^dist/",
    "opens a window": r"edgesdk desktop",
    "needs a key of the endpoint": r"cloud|Cloud|api_key|preset|HybridClient|generate|curl",
    "needs the network": r"edgesdk pull|hf:|curl",
    "needs Apple's hardware": r"apple|coreml|compute_units|load",
    "needs Intel's hardware": r"intel|load",
    "needs Qualcomm's hardware": r"qualcomm|soc_model|load",
    "needs a GPU": r"webgpu|gpu|load",
    "needs Windows": r"windows|npu|doctor|load",
    "needs a compiler for Intel's NPUs": r"intel",
    "needs the journals of devices": r"edgesdk (flywheel|journal)|--",
    "needs Claude Code": r"claude",
    "takes an hour": r"benchmarks|edgesdk",
    "is a part of an app": r"",
}
# Pages about the files that come out: a tiny model stands in for the small one.
TINY = {
    f"docs/how-to/{name}.md"
    for name in (
        "adapters", "apple", "cpu", "distill", "export", "formats", "intel", "litert", "measure",
        "qualcomm", "webgpu", "windows",
    )
}  # fmt: skip
DATA = ("toml", "text", "json", "jsonl")
RUN = {
    page for page, blocks in PAGES.items() if any(b.language in ("python", "sh") for b in blocks)
}


def _blocks(*languages: str) -> list[DocumentedBlock]:
    return [b for blocks in PAGES.values() for b in blocks if b.language in languages]


def test_there_is_no_block_that_nothing_looks_at() -> None:
    known = ("python", "sh", *DATA)
    odd = [b.place for blocks in PAGES.values() for b in blocks if b.language not in known]
    assert odd == [], "a fence with one of these languages is needed"
    assert len(_blocks("python", "sh")) > 40


def test_what_is_not_run_says_why() -> None:
    used = set()
    for block in _blocks("python", "sh"):
        if block.reason is None:
            assert not block.title or block.title == BESIDE or block.file, block.place
            continue
        used.add(block.reason)
        assert block.reason in REASONS, f"{block.place}: {block.reason!r} is no reason"
        commands = block.code.replace("\\\n", " ").splitlines()
        for part in commands if block.language == "sh" else [block.code]:
            assert re.search(REASONS[block.reason], part), f"{block.place}: {part}"
    assert set(REASONS) - used == set(), "a reason that nothing has"


def test_python_that_is_not_run_is_python() -> None:
    for block in _blocks("python"):
        compile(block.code, block.place, "exec", dont_inherit=True)


def test_commands_and_their_options_exist() -> None:
    context = click.Context(group)
    found = 0
    for block in _blocks("sh"):
        for line in block.code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "edgesdk" not in words:
                continue
            name, *rest = words[words.index("edgesdk") + 1 :]
            command = group.get_command(context, name)
            if isinstance(command, click.Group):
                name, *rest = rest
                command = command.get_command(context, name)
            assert command is not None, f"{block.place}: there is no {name}"
            options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
            given = {word for word in rest if re.fullmatch(r"--[a-z-]+", word)}
            assert given <= options, f"{block.place}: {name} has no {given - options}"
            found += 1
    assert found > 40


@pytest.fixture
def store(page: str, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """What the pages find, and a tiny model; MiniLM for the page about vectors."""
    # Looked for in the machine's store, before the pages get one of their own.
    pulled = [request.getfixturevalue("minilm")] if page == "docs/how-to/embeddings.md" else []
    documented_store: Path = request.getfixturevalue("documented_store")
    for checkpoint in pulled:
        Store().pull(checkpoint, name="all-minilm-l6-v2")
    make_tiny("llama", tmp_path / "tiny", num_hidden_layers=4)
    Store().pull(tmp_path / "tiny")
    return documented_store


@pytest.mark.nightly
@pytest.mark.parametrize("page", sorted(RUN - {"README.md"}))
def test_a_page_runs_from_top_to_bottom(
    page: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = PAGES[page]
    if page in TINY:
        blocks = [replace(b, code=b.code.replace("smollm2-135m-instruct", "tiny")) for b in blocks]
    run_page(blocks, tmp_path, monkeypatch)
