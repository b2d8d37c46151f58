"""Where the package index is: pip's settings, and uv's."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from pip._internal.models.index import PyPI

from edgesdk.errors import DownloadFailed
from edgesdk.store import package_index
from edgesdk.store.package_index import IndexSettings, default_index, read_index_settings

OWN = "https://index.example/simple"


@pytest.fixture(autouse=True)
def _no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No configuration file of this machine counts."""
    monkeypatch.setattr(package_index, "_pip_files", list)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))


def test_pip_settings_follow_pips_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "system.conf", tmp_path / "pip.conf"
    first.write_text("[global]\nindex-url = https://first.example/simple\ncert = /ca.pem\n")
    second.write_text(
        "[global]\nindex-url = https://global.example/simple\n"
        "extra-index-url = https://three.example\n"
        "[download]\nindex-url = https://download.example/simple\n"
        "[install]\nproxy = http://not-ours.example\n"
    )
    monkeypatch.setattr(package_index, "_pip_files", lambda: [first])
    environment = {
        "PIP_CONFIG_FILE": str(second),
        "PIP_EXTRA_INDEX_URL": "https://one.example https://two.example",
    }
    assert read_index_settings(environment) == IndexSettings(
        indexes=("https://download.example/simple", "https://one.example", "https://two.example"),
        certificates="/ca.pem",
    )


def test_the_null_device_turns_pips_files_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pip.conf"
    file.write_text(f"[global]\nindex-url = {OWN}\n")
    monkeypatch.setattr(package_index, "_pip_files", lambda: [file])
    assert read_index_settings({}).indexes == (OWN,)
    found = read_index_settings({"PIP_CONFIG_FILE": os.devnull}).indexes
    assert found == (PyPI.simple_url.rstrip("/"),)


def test_the_default_is_pips_own_also_where_pip_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = PyPI.simple_url.rstrip("/")
    assert default_index() == own
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pip" else real(name)
    )
    assert default_index() == own
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert default_index() == ""


def test_without_an_index_only_folders_are_looked_at() -> None:
    found = read_index_settings(
        {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels", "UV_DEFAULT_INDEX": OWN}
    )
    assert found == IndexSettings(indexes=(), find_links=("/wheels",))


def test_uvs_indexes_count_where_pip_has_none(tmp_path: Path) -> None:
    file = tmp_path / "uv.toml"
    file.write_text(
        '[[index]]\nurl = "https://default.example/simple"\ndefault = true\n'
        '[[index]]\nname = "more"\nurl = "https://more.example/simple"\n'
    )
    of_file = {"UV_CONFIG_FILE": str(file)}
    more = "https://more.example/simple"
    assert read_index_settings(of_file).indexes == ("https://default.example/simple", more)
    named = {"UV_DEFAULT_INDEX": OWN, "UV_INDEX": "own=https://own.example"}
    assert read_index_settings(of_file | named).indexes == (OWN, "https://own.example", more)
    assert read_index_settings(named | {"PIP_INDEX_URL": "https://pip.example"}).indexes == (
        "https://pip.example",
        "https://own.example",
    )


@pytest.mark.parametrize(
    ("variable", "text"), [("PIP_CONFIG_FILE", "index-url"), ("UV_CONFIG_FILE", "[[index")]
)
def test_a_malformed_file_is_named(tmp_path: Path, variable: str, text: str) -> None:
    file = tmp_path / "file.conf"
    file.write_text(text)
    with pytest.raises(DownloadFailed, match="configuration of the package index cannot be read"):
        read_index_settings({variable: str(file)})
