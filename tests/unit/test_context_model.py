"""What is read of compiled ONNX files, against the package onnx."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgesdk.engines.npu.context_model import read_context_model

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=200)


def model(operators: list[str], metadata: dict[str, str]) -> bytes:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 300])
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    nodes = [
        helper.make_node(each, ["x"], ["x"], name=f"{each}.{place}", size=2**40)
        for place, each in enumerate(operators)
    ]
    made = helper.make_model(helper.make_graph(nodes, "g", [value], [value], [weight]))
    helper.set_model_props(made, metadata)
    return made.SerializeToString()


@given(st.lists(WORDS.filter(bool), max_size=5), st.dictionaries(WORDS.filter(bool), WORDS))
def test_operators_and_metadata(operators, metadata) -> None:
    found = read_context_model(model(operators, metadata))
    assert found.nodes == tuple((each, f"{each}.{place}") for place, each in enumerate(operators))
    assert found.metadata == metadata


@given(st.binary(max_size=100))
def test_damaged_files(data) -> None:
    try:
        read_context_model(data)
    except ValueError:
        return


def test_a_file_that_is_cut_off() -> None:
    data = model(["EPContext"], {"a": "b"})
    onnx.load_from_string(data)
    with pytest.raises(ValueError, match="ends behind the file"):
        read_context_model(data[:-1])
