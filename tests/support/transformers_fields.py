"""Which fields of a configuration the installed transformers reads, from its own source."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from types import ModuleType
from typing import Any

from transformers import CONFIG_MAPPING
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RotaryEmbeddingConfigMixin

# What `from_pretrained` itself reads for all families, and how long a text may get.
_OF_ALL = {
    "model_type",
    "architectures",
    "tie_word_embeddings",
    "quantization_config",
    "max_position_embeddings",
}


def fields_read(model_type: str, rope_kind: str = "default") -> set[str]:
    """Names of fields that change what transformers computes for a model, nested ones too.

    A field that is only stored in an attribute which nobody reads (gemma3's
    `attn_logit_softcapping`) is not among them; nor is what only another kind of rope reads.
    """
    config = CONFIG_MAPPING[model_type]
    name = config.__module__.replace(".configuration_", ".modeling_")
    modeling = importlib.import_module(name)
    fields = _OF_ALL | _of_modeling(modeling) | _of_class(config)
    if rope_kind == "default":
        return fields
    compute = ROPE_INIT_FUNCTIONS[rope_kind]
    return fields | _names(compute) | _names(RotaryEmbeddingConfigMixin.standardize_rope_params)


def _of_modeling(module: ModuleType) -> set[str]:
    tree = ast.parse(inspect.getsource(module))
    loaded = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    unread = {
        id(node)
        for statement in ast.walk(tree)
        if isinstance(statement, ast.Assign)
        and all(_is_own(target) and target.attr not in loaded for target in statement.targets)
        for node in ast.walk(statement.value)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in unread:
            continue
        if isinstance(node, ast.Attribute) and _is_config(node.value):
            found.add(node.attr)
        elif isinstance(node, ast.Call) and _is_lookup(node):
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            found.add(node.slice.value)
    return {name for name in found if isinstance(name, str)}


def _is_own(target: ast.expr) -> bool:
    return (
        isinstance(target, ast.Attribute)
        and isinstance(target.value, ast.Name)
        and target.value.id == "self"
    )


def _is_config(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name.endswith("config")


def _is_lookup(node: ast.Call) -> bool:
    if isinstance(node.func, ast.Name):
        return node.func.id == "getattr" and _is_config(node.args[0])
    return isinstance(node.func, ast.Attribute) and node.func.attr == "get"


def _of_class(config: type[Any]) -> set[str]:
    """What a configuration makes other fields of, and how it spells its rope."""
    found = {"rope_theta", "rope_scaling", "rope_parameters", "rope_type", "type"}
    for method in ("__post_init__", "convert_rope_params_to_dict"):
        own = vars(config).get(method)
        if own is not None:
            found |= _names(own)
    return found


def _names(function: Any) -> set[str]:
    """Attributes of `self` or `config` and strings in a function, without its documentation."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return names


def default_of(model_type: str, field: str) -> Any:
    """The default that a configuration class gives a field; KeyError where it has none."""
    fields = CONFIG_MAPPING[model_type].__dataclass_fields__
    return fields[field].default
