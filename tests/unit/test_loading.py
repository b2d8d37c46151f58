from __future__ import annotations

from pathlib import Path

import pytest

from edgesdk.errors import BundleError, EngineError, MissingExtra, UnknownModel
from edgesdk.loading import find, load
from edgesdk.store import Store


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESDK_HOME", str(tmp_path / "home"))


def _pulled(tmp_path: Path, name: str, file: str) -> None:
    source = tmp_path / "source" / file
    source.parent.mkdir(exist_ok=True)
    source.write_bytes(b"GGUF, but nothing else")
    Store().pull(str(source), name=name)


def test_an_unknown_name_suggests_the_nearest(tmp_path: Path) -> None:
    _pulled(tmp_path, "tiny-model", "a.gguf")

    with pytest.raises(UnknownModel, match="Did you mean tiny-model"):
        load("tiny-modle")


@pytest.mark.parametrize("what", ["./nowhere", "nowhere.gguf", "/no/such/model.gguf", "No Name"])
def test_a_place_where_nothing_is_says_so(what: str) -> None:
    with pytest.raises(UnknownModel):
        load(what)


def test_a_path_is_never_a_name(tmp_path: Path) -> None:
    _pulled(tmp_path, "tiny-model", "a.gguf")

    with pytest.raises(UnknownModel, match="neither a bundle folder nor"):
        load(Path("tiny-model"))


def test_a_folder_that_is_no_bundle_says_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        load(tmp_path)


def test_a_pulled_gguf_is_found_by_its_name(tmp_path: Path) -> None:
    _pulled(tmp_path, "tiny-model", "a.gguf")

    found = find("tiny-model")

    assert isinstance(found, Path)
    assert found.read_bytes() == b"GGUF, but nothing else"


def test_a_damaged_gguf_is_an_engine_error(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    _pulled(tmp_path, "tiny-model", "a.gguf")

    with pytest.raises(EngineError):
        load("tiny-model")


def test_without_llama_cpp_a_pulled_gguf_says_how_to_export_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pulled(tmp_path, "tiny-model", "a.gguf")

    def absent() -> None:
        raise MissingExtra("llama-cpp-python", extra="gguf", needed_for="Running GGUF models")

    monkeypatch.setattr("edgesdk.engines.gguf.engine.load_library", absent)

    with pytest.raises(MissingExtra, match=r"edgesdk export tiny-model.*edgesdk\[gguf\]"):
        load("tiny-model")
