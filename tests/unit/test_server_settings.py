"""Which settings a server refuses, and which it takes by itself."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from edgesdk.cli.serve import command
from edgesdk.errors import InvalidOption
from edgesdk.server.settings import ServerSettings


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.org"])
def test_an_open_address_needs_a_key(host: str) -> None:
    with pytest.raises(InvalidOption, match="EDGESDK_API_KEY"):
        ServerSettings(host=host)
    assert not ServerSettings(host=host, api_key="secret").is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_a_loopback_address_needs_none(host: str) -> None:
    assert ServerSettings(host=host).is_loopback


@pytest.mark.parametrize(
    "wrong",
    [
        {"api_key": " "},
        {"port": -1},
        {"port": 65536},
        {"queue": 0},
        {"max_idle_states": -1},
        {"deadline": 0},
        {"deadline": float("inf")},
    ],
)
def test_what_is_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        ServerSettings(**wrong)


@pytest.mark.parametrize(
    ("arguments", "invariant"),
    [
        ([], True),
        (["--no-batch-invariant"], False),
        (["--no-batch-invariant", "--parallel", "1"], True),
    ],
)
def test_answers_depend_on_none_beside_them_unless_that_is_asked_for(
    arguments: list[str], invariant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: dict[str, Any] = {}
    monkeypatch.setattr(
        "edgesdk.server.model_pool.StoreModels", lambda *_, **options: taken.update(options)
    )
    monkeypatch.setattr("edgesdk.server.serving.serve", lambda *_, **options: None)
    monkeypatch.setattr("edgesdk.server.serving.keep_memory_flat", lambda: None)
    assert CliRunner().invoke(command, arguments, catch_exceptions=False).exit_code == 0
    assert taken["batch_invariant"] is invariant
