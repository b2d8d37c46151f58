"""Which settings a server refuses."""

from __future__ import annotations

from typing import Any

import pytest

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
