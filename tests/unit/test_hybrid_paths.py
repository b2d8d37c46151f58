"""Whoever takes a path takes it as text, too."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.offline_queues import KEY, request

import edgesdk.hybrid
from edgesdk.hybrid.cloud.spending import Budget, Cost, SpendingLimits
from edgesdk.hybrid.confidence.artifacts import ArtifactStore
from edgesdk.hybrid.offline.queue import OfflineQueue
from edgesdk.hybrid.storage.journal import DecisionRecord, Journal


def journal(path: str) -> list[int]:
    with_one = Journal(path)
    with_one.append(DecisionRecord(1.0, "local", "why", "redact"), prompt="a")
    return [entry.id for entry in Journal(Path(path)).entries()]


def queue(path: str) -> list[int]:
    OfflineQueue(path, key=KEY).put(request("a"))
    return [entry.id for entry in OfflineQueue(Path(path), key=KEY).entries()]


def budget(path: str) -> list[int]:
    Budget(SpendingLimits(), path).reserve(Cost(tokens=1))
    return [Budget(SpendingLimits(), Path(path)).spent().tokens]


def artifacts(path: str) -> list[int]:
    ArtifactStore(path).write("ab", "name", [1])
    found = ArtifactStore(path + "x", shipped=[path]).read("ab", "name")
    assert isinstance(found, list)
    return [int(str(one)) for one in found]


@pytest.mark.parametrize("use", [journal, queue, budget, artifacts])
def test_a_path_may_be_text(tmp_path: Path, use: Callable[[str], list[int]]) -> None:
    assert use(str(tmp_path / "new" / "file")) == [1]


def test_a_path_may_be_relative_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (journal, queue, budget, artifacts):
        assert use(f"{use.__name__}.db") == [1]


def parameters() -> Iterator[tuple[str, str]]:
    """Every parameter of a public class's constructor and methods in the package."""
    for found in pkgutil.walk_packages(edgesdk.hybrid.__path__, "edgesdk.hybrid."):
        module = importlib.import_module(found.name)
        for name, kind in vars(module).items():
            if not inspect.isclass(kind) or kind.__module__ != found.name or name.startswith("_"):
                continue
            for method, function in inspect.getmembers(kind, inspect.isfunction):
                if method == "__init__" or not method.startswith("_"):
                    for each in inspect.signature(function).parameters.values():
                        yield f"{name}.{method}({each.name})", str(each.annotation)


def test_every_public_parameter_takes_text_where_it_takes_a_path() -> None:
    annotations = dict(parameters())
    assert len(annotations) > 300
    paths = {
        where: kind for where, kind in annotations.items() if re.search(r"\bPath(Like)?\b", kind)
    }
    assert {"Journal.__init__(path)", "HybridClient.restore(path)"} <= paths.keys()
    without = [where for where, kind in paths.items() if "str | " not in kind]
    assert without == []
