"""What was learned of a bundle comes back, whole, and only for that bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.errors import RequestError
from edgesdk.hybrid.confidence.artifacts import ArtifactStore

HASH, OTHER = "ab" * 32, "cd" * 32
JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_what_was_kept_comes_back(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    kept = ArtifactStore(tmp_path_factory.mktemp("kept"))
    kept.write(HASH, "confidence", value)
    assert kept.read(HASH, "confidence") == value
    assert kept.read(OTHER, "confidence") is None
    assert kept.read(HASH, "prompts") is None


def test_the_device_comes_before_what_was_shipped(tmp_path: Path) -> None:
    shipped = ArtifactStore(tmp_path / "bundle")
    shipped.write(HASH, "confidence", 1)
    shipped.write(HASH, "prompts", 2)
    kept = ArtifactStore(tmp_path / "home", shipped=(tmp_path / "bundle",))
    assert kept.read(HASH, "confidence") == 1
    kept.write(HASH, "confidence", 3)
    assert (kept.read(HASH, "confidence"), kept.read(HASH, "prompts")) == (3, 2)
    assert shipped.read(HASH, "confidence") == 1


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    kept = ArtifactStore(tmp_path)
    path = kept.write(HASH, "confidence", {"a": 1})
    with pytest.raises(RequestError, match="no JSON"):
        kept.write(HASH, "confidence", {"a": float("nan")})
    with pytest.raises(RequestError, match="no JSON"):
        kept.write(HASH, "confidence", {"a": object()})  # type: ignore[dict-item]
    assert kept.read(HASH, "confidence") == {"a": 1}
    assert [file.name for file in path.parent.iterdir()] == ["confidence.json"]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-9],
        lambda text: text.replace('"version": 1', '"version": 2'),
        lambda text: text.replace(HASH, OTHER),
        lambda text: text.replace("edgesdk-artifact", "other"),
        lambda text: "[" * 100_000,
        lambda text: "",
    ],
)
def test_a_damaged_file_is_said(tmp_path: Path, change: Any) -> None:
    kept = ArtifactStore(tmp_path)
    path = kept.write(HASH, "confidence", 1)
    path.write_text(change(path.read_text()))
    with pytest.raises(RequestError, match=r"confidence\.json"):
        kept.read(HASH, "confidence")


@pytest.mark.parametrize("name", ["", "../secret", "a/b", "A", ".hidden", "a\n", "x" * 97])
def test_names_stay_inside_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match="no name"):
        ArtifactStore(tmp_path).read(HASH, name)
    with pytest.raises(RequestError, match="no name"):
        ArtifactStore(tmp_path).write(name, "confidence", 1)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot be written"):
        ArtifactStore(tmp_path / "file").write(HASH, "confidence", 1)


def test_what_cannot_be_used_is_as_if_it_were_not_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = ArtifactStore(tmp_path)
    assert kept.load(HASH, "confidence", int) is None
    assert not caplog.records
    kept.write(HASH, "confidence", 5)
    assert kept.load(HASH, "confidence", int) == 5
    kept.write(HASH, "confidence", "five")
    assert kept.load(HASH, "confidence", int) is None
    assert "no stored int" in caplog.text
