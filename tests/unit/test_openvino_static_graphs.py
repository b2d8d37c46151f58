"""Ports of compiled models, which have the names of all nodes that OpenVINO merged into them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgesdk.engines.openvino.static_graphs import OpenVinoStaticGraphs, found_ports, port_of
from edgesdk.errors import EngineError


def port(shape: list[int], *names: str) -> Any:
    element = SimpleNamespace(to_dtype=lambda: np.dtype("float16"))
    return SimpleNamespace(
        get_names=lambda: set(names), get_shape=lambda: shape, get_element_type=lambda: element
    )


LOGITS, EXTRA = port([1, 1, 8], "MatMul_94", "logits", "a"), port([1], "z", "y")


def test_a_port_is_found_by_any_of_its_names() -> None:
    assert port_of([EXTRA, LOGITS], "logits") is LOGITS


def test_ports_have_the_names_that_are_wanted() -> None:
    wanted: Any = {"logits": ("float32", (1, 1, 8))}
    assert found_ports([LOGITS, EXTRA], wanted) == {
        "logits": ("float16", (1, 1, 8)),
        "y": ("float16", (1,)),
    }


def test_nothing_is_bound_after_closing() -> None:
    graphs = OpenVinoStaticGraphs(SimpleNamespace(), {"prefill": SimpleNamespace()})
    graphs.close()
    with pytest.raises(EngineError, match="closed"):
        graphs.bind("prefill", {}, {})
