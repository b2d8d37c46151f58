"""The command line as a shell sees it: exit codes, one-line errors, JSON on stdout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import edgesdk_here

import edgesdk

pytestmark = pytest.mark.e2e


class Shell:
    """Runs `edgesdk` with a store of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        ours = {"PYTHONPATH": os.pathsep.join(sys.path), "EDGESDK_HOME": str(self.root)}
        return subprocess.run(
            [sys.executable, "-m", "edgesdk", *arguments],
            env=os.environ | ours | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def here(self, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """Run it in this process, which is faster."""
        return edgesdk_here(*arguments, home=self.root, expect=expect)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "store")


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF" + bytes(1000))
    return path


def error_line(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of error that there is, and nothing else."""
    (line,) = result.stderr.splitlines()
    assert line.startswith("edgesdk: error: ")
    assert result.stdout == ""
    return line


def test_version(shell: Shell) -> None:
    result = shell("--version")
    assert result.returncode == 0
    assert result.stdout.split()[-1] == edgesdk.__version__


def test_the_help_names_every_subcommand_and_imports_none(shell: Shell) -> None:
    code = (
        "import sys; from edgesdk.cli.command_group import group\n"
        "try: group.main(['--help'], prog_name='edgesdk')\n"
        "finally: print(sorted(m for m in sys.modules if m in ('rich', 'httpx', 'pydantic',"
        " 'numpy', 'psutil') or m.startswith('edgesdk.cli.')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    *text, loaded = result.stdout.splitlines()
    words = {line.split()[0] for line in text if line.startswith("  ")}
    names = {"pull", "list", "show", "verify", "remove", "export", "run", "chat", "doctor"}
    assert names <= words
    assert loaded == "['edgesdk.cli.command_group']"


@pytest.mark.parametrize(("name", "status"), [("absent", 1), ("Not A Name", 2)])
def test_an_error_is_one_line(shell: Shell, name: str, status: int) -> None:
    result = shell("show", name)
    assert result.returncode == status
    assert repr(name) in error_line(result)


def test_an_error_that_nobody_foresaw_is_one_line_too(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    result = shell("pull", str(tmp_path / "m.gguf"), EDGESDK_HOME=str(tmp_path / "file" / "x"))
    assert result.returncode == 1
    assert "--debug" in error_line(result)


def test_debug_gives_the_traceback(shell: Shell) -> None:
    result = shell("--debug", "show", "absent")
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback")
    assert result.stderr.splitlines()[-1].startswith("edgesdk: error: ")


def test_a_model_through_all_subcommands(shell: Shell, gguf: Path) -> None:
    pulled = shell("pull", str(gguf), "--json")
    assert pulled.returncode == 0, pulled.stderr
    entry = json.loads(pulled.stdout)
    assert (entry["name"], entry["size"], entry["problem"]) == ("tiny", 1004, None)

    assert json.loads(shell.here("list", "--json").stdout) == [entry]
    assert "tiny" in shell.here("list").stdout

    shown = json.loads(shell.here("show", "tiny", "--json").stdout)
    assert shown["record"]["files"][0]["sha256"] == entry["sha256"]
    assert entry["sha256"] in shell.here("show", "tiny").stdout

    checked = json.loads(shell.here("verify", "--json").stdout)
    assert checked == [{"name": "tiny", "kind": "checkpoint", "problem": None}]

    Path(entry["path"]).unlink()
    Path(entry["path"]).write_bytes(b"GGUF" + bytes(999) + b"\1")
    damaged = shell.here("verify", "tiny", "--json", expect=1)
    assert "is damaged" in json.loads(damaged.stdout)[0]["problem"]

    shell.here("remove", "tiny")
    assert json.loads(shell.here("list", "--json").stdout) == []
    assert "is empty" in shell.here("list").stdout


def test_the_catalog_is_listed(shell: Shell) -> None:
    models = json.loads(shell.here("list", "--available", "--json").stdout)
    sizes = {model["name"]: model["size"] for model in models}
    assert sizes["smollm2-135m-instruct"] == 98_362_432
    assert "qwen2.5-coder-1.5b-instruct" in shell.here("list", "--available").stdout


def test_output_that_goes_to_a_file_has_no_escapes(shell: Shell, gguf: Path) -> None:
    results = [shell.here("pull", str(gguf)), shell.here("list"), shell.here("doctor")]
    assert all("\x1b" not in result.stdout + result.stderr for result in results)


def test_the_doctor_finds_what_is_needed(shell: Shell) -> None:
    result = shell.here("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    import onnxruntime

    assert checks["onnxruntime"]["status"] == "ok"
    assert onnxruntime.__version__ in checks["onnxruntime"]["found"]
    assert "CPU" in checks["onnxruntime"]["found"]
    assert str(shell.root) in checks["store"]["found"]
    for check in checks.values():
        assert check["status"] == "ok" or check["advice"]


def test_the_doctor_fails_when_something_needed_is_broken(shell: Shell, tmp_path: Path) -> None:
    broken = tmp_path / "shadow" / "onnxruntime"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('no such library')", encoding="utf-8")
    path = os.pathsep.join([str(broken.parent), *sys.path])
    result = shell("doctor", PYTHONPATH=path)
    assert result.returncode == 1
    assert "no such library" in result.stdout


def test_the_doctor_names_damaged_models(shell: Shell, gguf: Path) -> None:
    entry = json.loads(shell.here("pull", str(gguf), "--json").stdout)
    Path(entry["path"]).unlink()
    checks = {check["name"]: check for check in json.loads(shell.here("doctor", "--json").stdout)}
    assert checks["store"]["status"] == "warn"
    assert "tiny" in checks["store"]["advice"]
