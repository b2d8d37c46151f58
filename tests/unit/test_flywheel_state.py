"""The folder of a flywheel: one file says what is current, and a turn goes on where it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgesdk_export.flywheel.state import FlywheelFolder, PromotedModel

from edgesdk.errors import RequestError

FIRST = PromotedModel(0, Path("/c"), Path("/b"))
SECOND = PromotedModel(1, Path("/c"), Path("/b"), Path("/a"), Path("/p"))


@pytest.fixture
def folder(tmp_path: Path) -> FlywheelFolder:
    found = FlywheelFolder(tmp_path / "wheel")
    found.begin(FIRST)
    return found


def test_a_promoted_model_is_current_until_it_is_rolled_back(folder: FlywheelFolder) -> None:
    folder.promote(SECOND, "better")
    assert FlywheelFolder(folder.path).current == SECOND
    # As after a kill between the two files.
    folder.promote(SECOND, "better")
    assert folder.promoted() == [FIRST, SECOND]
    assert folder.roll_back() == FIRST
    assert folder.current == FIRST
    with pytest.raises(RequestError, match="no model before the current one"):
        folder.roll_back()
    assert [(each["turn"], each["event"]) for each in folder.history()] == [
        (1, "promoted"),
        (1, "rolled back"),
    ]


def test_a_turn_under_way_goes_on_with_the_same_job_only(folder: FlywheelFolder) -> None:
    turn = folder.open_turn({"recipe": 1})
    turn.finish("learned", {"samples": 3})
    assert folder.open_turn({"recipe": 1}).result("learned") == {"samples": 3}
    again = folder.open_turn({"recipe": 2})
    assert (again.number, again.result("learned")) == (1, None)
    folder.note("refused", 1, "worse")
    assert folder.open_turn({"recipe": 2}).number == 2


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no flywheel's folder"):
        _ = FlywheelFolder(tmp_path).current
    (tmp_path / "current.json").write_text("{")
    with pytest.raises(RequestError, match="is damaged"):
        FlywheelFolder(tmp_path).promoted()


def test_one_process_at_a_time_turns_it(folder: FlywheelFolder) -> None:
    with folder.locked():
        with pytest.raises(RequestError, match="being turned already"), folder.locked():
            pass
        # Who only looks need not wait.
        assert FlywheelFolder(folder.path).current == FIRST
    with folder.locked():
        pass
