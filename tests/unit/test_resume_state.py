"""What an export keeps of its work, and who may go on with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgesdk_export.resume import ResumeState, SectionJournal, carry_through_layers, compute_once
from edgesdk_export.resume.inputs import inputs_hash
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.bundle.manifest import MANIFEST_NAME
from edgesdk.bundle.writing import resume_folder, staged_folder
from edgesdk.errors import BundleError

SECTIONS = {"head": b"abc", "layers.0": b"d" * 70, "layers.1": b"e" * 5}


def written(folder: Path, sections: dict[str, bytes]) -> SectionJournal:
    journal = SectionJournal(folder / "journal")
    with journal.open(folder / "data") as stream:
        for number, (name, content) in enumerate(sections.items()):
            if name not in journal.sections:
                stream.write(content)
                journal.finish(name, stream, [number, {"of": name}])
    return journal


def test_a_journal_gives_back_what_was_finished(tmp_path: Path) -> None:
    written(tmp_path, SECTIONS)
    again = SectionJournal(tmp_path / "journal")
    assert again.sections == {name: [number, {"of": name}] for number, name in enumerate(SECTIONS)}


@given(data=st.data())
def test_a_file_goes_on_wherever_the_kill_was(tmp_path_factory, data) -> None:
    folder = tmp_path_factory.mktemp("killed")
    written(folder, SECTIONS)
    whole, lines = (folder / "data").read_bytes(), (folder / "journal").read_bytes()
    # Data is on the disk before its line is, and what was not finished may be anything.
    cut = data.draw(st.integers(0, len(lines)))
    (folder / "journal").write_bytes(lines[:cut] + data.draw(st.binary(max_size=9)))
    finished = sum(
        len(content)
        for content, _ in zip(SECTIONS.values(), lines[:cut].splitlines(True), strict=False)
    )
    (folder / "data").write_bytes(whole[:finished] + data.draw(st.binary(max_size=90)))
    written(folder, SECTIONS)
    assert (folder / "data").read_bytes() == whole
    assert list(SectionJournal(folder / "journal").sections) == list(SECTIONS)


def test_a_journal_without_its_data_is_worth_nothing(tmp_path: Path) -> None:
    written(tmp_path, SECTIONS)
    (tmp_path / "data").write_bytes(b"ab")
    assert written(tmp_path, SECTIONS).sections.keys() == SECTIONS.keys()
    assert (tmp_path / "data").read_bytes() == b"".join(SECTIONS.values())


class Killed(BaseException):
    """Stands for a kill."""


def test_a_pass_goes_on_from_the_last_finished_layer(tmp_path: Path) -> None:
    resume, run, done, kills = ResumeState(tmp_path), [], [], [2]

    def step(index, carried):
        if index in kills:
            raise Killed
        run.append(index)
        return {**carried, "sum": carried["sum"] * 2 + index, f"layers.{index}": np.array([index])}

    def first():
        return {"sum": np.array(1.5)}

    with pytest.raises(Killed):
        carry_through_layers(resume, "pass", 4, first, step, done.append)
    kills.clear()
    found = carry_through_layers(resume, "pass", 4, first, step, done.append)
    assert run == [0, 1, 2, 3]
    # The first of the second process says what it found.
    assert done == [1, 2, 2, 3, 4]
    undisturbed = carry_through_layers(None, "pass", 4, first, step)
    assert {k: v.tolist() for k, v in found.items()} == {
        k: v.tolist() for k, v in undisturbed.items()
    }


def test_a_damaged_piece_is_computed_again(tmp_path: Path) -> None:
    resume = ResumeState(tmp_path)
    compute_once(resume, "piece", lambda: {"a": np.arange(1000)})
    assert compute_once(resume, "piece", dict)["a"][-1] == 999
    path = tmp_path / "piece.npz"
    path.write_bytes(path.read_bytes()[:-700])
    assert compute_once(resume, "piece", lambda: {"a": np.arange(3)})["a"].tolist() == [0, 1, 2]


def left_by_a_kill(destination: Path, inputs: str) -> None:
    def killed() -> None:
        with staged_folder(destination, inputs=inputs) as stage:
            (stage / "half").write_text("x")
            (resume_folder(stage) / "piece").write_text("y")
            raise Killed

    with pytest.raises(Killed):
        killed()


def test_the_same_inputs_find_the_folder_again(tmp_path: Path) -> None:
    left_by_a_kill(tmp_path / "b", "one")
    with staged_folder(tmp_path / "b", inputs="one") as stage:
        assert (stage / "half").read_text() == "x"
        assert (resume_folder(stage) / "piece").read_text() == "y"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["half"]


@pytest.mark.parametrize("inputs", ["two", None])
def test_other_inputs_begin_anew_and_remove_what_was_left(tmp_path: Path, inputs) -> None:
    left_by_a_kill(tmp_path / "b", "one")
    with staged_folder(tmp_path / "b", inputs=inputs) as stage:
        assert not list(stage.iterdir())
        assert [path.name for path in tmp_path.iterdir()] == [stage.parent.name]
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_what_failed_is_not_gone_on_with(tmp_path: Path) -> None:
    def fail() -> None:
        with staged_folder(tmp_path / "b", inputs="one"):
            raise RuntimeError("a broken weight")

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())


def test_a_place_that_was_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    """Two at once, each in a folder of its own, though both are made from the same."""

    def second() -> None:
        with staged_folder(tmp_path / "b", inputs="one") as mine:
            with staged_folder(tmp_path / "b", inputs="one") as other:
                assert other != mine
                (other / "first").touch()
            (mine / "second").touch()

    with pytest.raises(BundleError, match="exists already"):
        second()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["first"]


def bundle_like(folder: Path, name: str) -> None:
    """What replacing takes for a bundle."""
    (folder / MANIFEST_NAME).write_text("{}")
    (folder / name).touch()


def test_of_two_that_may_replace_the_last_one_stands(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "b", inputs="one", replace=True) as mine:
        with staged_folder(tmp_path / "b", inputs="one", replace=True) as other:
            bundle_like(other, "first")
        bundle_like(mine, "second")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert (tmp_path / "b" / "second").exists()


def test_a_rename_that_fails_gives_back_what_stood_there(tmp_path: Path, monkeypatch) -> None:
    place, rename = tmp_path / "b", Path.replace
    with staged_folder(place) as stage:
        bundle_like(stage, "old")

    def failing(path: Path, target: Path) -> Path:
        if path.name == "bundle":
            raise OSError("a bad disk")
        return rename(path, target)

    def replaced() -> None:
        with staged_folder(place, replace=True) as stage:
            bundle_like(stage, "new")

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match="a bad disk"):
        replaced()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert (place / "old").exists()


def test_a_refusal_leaves_what_was_kept(tmp_path: Path) -> None:
    left_by_a_kill(tmp_path / "b", "one")
    (tmp_path / "b").mkdir()

    def refused() -> None:
        with staged_folder(tmp_path / "b", inputs="one"):
            pass

    with pytest.raises(BundleError, match="exists already"):
        refused()
    (tmp_path / "b").rmdir()
    with staged_folder(tmp_path / "b", inputs="one") as stage:
        assert (stage / "half").exists()


def test_inputs_are_the_request_and_the_files(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"1234")
    before = inputs_hash(model, {"bits": 4})
    assert inputs_hash(model, {"bits": 4}) == before
    assert inputs_hash(model, {"bits": 8}) != before
    other = tmp_path / "other"
    other.write_bytes(b"5678")
    other.replace(model / "weights")
    assert inputs_hash(model, {"bits": 4}) != before
