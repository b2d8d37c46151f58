"""The documentation builds without a warning, and what it says of the code is so."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType, ModuleType

import click
import pytest

import edgesdk
import edgesdk.hybrid
from edgesdk.cli.command_group import group

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGE = Path(edgesdk.__file__).parent


def test_it_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "reference" / "python.html").read_text(encoding="utf-8")
    assert 'id="edgesdk.loading.load"' in page
    commands = (tmp_path / "reference" / "command-line.html").read_text(encoding="utf-8")
    assert [
        name
        for name in group.list_commands(click.Context(group))
        if f"edgesdk {name}" not in commands
    ] == []


@pytest.mark.parametrize("package", [edgesdk, edgesdk.hybrid])
def test_each_public_name_is_in_the_reference(package: ModuleType) -> None:
    """The text comes from the docstrings and from `--help` when the pages are built."""
    pages = [page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md")]
    written = {name for page in pages for name in re.findall(r"^::: [\w.]+\.(\w+)$", page, re.M)}
    written |= set(vars(edgesdk.errors)) | {"hybrid", "__version__"}
    assert set(package.__all__) - written == set()


def test_the_drawing_shows_the_imports_that_there_are() -> None:
    """Counts of lines change with every edit; the houses and their arrows do not."""

    def shape(svg: str) -> str:
        return re.sub(r'[\d,]+ files, [\d,]+ lines|stroke-width="[\d.]+"', "", svg)

    drawing = runpy.run_path(str(DOCS / "draw_architecture.py"))["drawing"]
    drawn = (DOCS / "architecture.svg").read_text(encoding="utf-8")
    assert shape(drawing()) == shape(drawn), "run python docs/draw_architecture.py"


def test_the_table_of_devices_is_that_of_the_records() -> None:
    page = runpy.run_path(str(DOCS / "write_device_table.py"))["page"]
    written = (DOCS / "explanation" / "devices.md").read_text(encoding="utf-8")
    assert page() == written, "run python docs/write_device_table.py"
    named = re.findall(r"`(tests/[\w/]+\.py)`", written)
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_list_of_fields_is_that_of_the_requests() -> None:
    page = runpy.run_path(str(DOCS / "write_request_fields.py"))["page"]
    written = (DOCS / "reference" / "request-fields.md").read_text(encoding="utf-8")
    assert page() == written, "run python docs/write_request_fields.py"


def test_the_files_that_the_walks_name_exist() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+/[\w/]+\.py)`", text)
    assert len(named) > 50
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_walk_of_a_prompt_is_the_one_that_is_taken(smollm2_gguf: Path) -> None:
    """On llama.cpp, whose engine files stand in the place of onnxruntime's."""
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    section = text.split("## A prompt")[1].split("\n## ")[0]
    steps, _, others = section.partition("These are the files")
    read = set(re.findall(r"`edgesdk/([\w/]+\.py)`", steps))
    called = set(re.findall(r"`edgesdk/([\w/]+\.py)`", others))
    assert len(read) == 12
    seen: set[str] = set()

    def record(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            seen.add(path.relative_to(PACKAGE).as_posix())

    with edgesdk.load(smollm2_gguf, context=256) as model, model.chat(system="Be brief.") as chat:
        chat.respond("Hello", max_tokens=2)
        threading.setprofile(record)
        sys.setprofile(record)
        try:
            list(chat.stream("Name a river.", max_tokens=3))
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]
    on_gguf = {name for name in seen if not name.startswith("engines/gguf/")}
    ours = {
        name for name in read if not name.startswith("engines/") and name != "text/tokenizer.py"
    }
    assert ours <= on_gguf
    assert on_gguf <= read | called
