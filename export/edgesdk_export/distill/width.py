"""Cut a model in width: attention heads, groups of heads that share keys and values, FFN channels.

What is left out is what adds least: the mean square of what a head or a channel adds to the hidden
state, measured on sequences (activation importance, as in Minitron: Muralidharan et al., 2024,
arXiv:2407.14679, who rank by the activations alone; a head is as large as its rows of the output
matrix make it, too). Every layer keeps as many, each layer its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgesdk.errors import RequestError
from edgesdk_export.distill.samples import Sample

_MATRICES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_MLP_MATRICES = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True)
class Width:
    """How wide a model's layers are.

    Attributes:
        heads: attention heads of a layer.
        kv_heads: groups of heads with keys and values of their own.
        channels: of the FFN's middle.
    """

    heads: int
    kv_heads: int
    channels: int


def width_of(model: Any) -> Width:
    """The width of a transformers model."""
    config = model.config
    return Width(config.num_attention_heads, config.num_key_value_heads, config.intermediate_size)


def cut_width(model: Any, width: Width, samples: Sequence[Sample]) -> Any:
    """A narrower model of the same class, with what counts most on the samples.

    Raises:
        RequestError: the model is not as wide, the heads do not share evenly, or its layers have
            other matrices than a llama's.
    """
    whole = width_of(model)
    _require_possible(whole, width)
    layers = [_matrices(layer, model) for layer in model.model.layers]
    moments = _second_moments(model, layers, samples)
    config = copy.deepcopy(model.config)
    config.head_dim = _head_size(model)
    config.num_attention_heads = width.heads
    config.num_key_value_heads = width.kv_heads
    config.intermediate_size = width.channels
    weights = dict(model.state_dict())
    for index, parts in enumerate(layers):
        kept = _kept_of_layer(parts, moments[index], whole, width, config.head_dim)
        for part, (rows, columns) in kept.items():
            for kind in ("weight", "bias"):
                name = f"model.layers.{index}.{part}.{kind}"
                if name not in weights:
                    continue
                if rows is not None:
                    weights[name] = weights[name][rows]
                if columns is not None and kind == "weight":
                    weights[name] = weights[name][:, columns]
    narrow = type(model)(config)
    narrow.load_state_dict(weights)
    return narrow.eval()


def _require_possible(whole: Width, width: Width) -> None:
    for name in ("heads", "kv_heads", "channels"):
        wanted, there = getattr(width, name), getattr(whole, name)
        if not 0 < wanted <= there:
            raise RequestError(
                f"A student with {name} = {wanted} cannot be cut from a model with {there}.",
                hint=f"Ask for 1 to {there}.",
            )
    if (
        width.heads % width.kv_heads
        or width.heads // width.kv_heads > whole.heads // whole.kv_heads
    ):
        raise RequestError(
            f"{width.heads} heads cannot share {width.kv_heads} groups of keys and values: each"
            f" group has the same number of heads, and at most {whole.heads // whole.kv_heads}.",
            hint="Ask for a multiple of kv_heads, or name kv_heads alone.",
        )


def _matrices(layer: nn.Module, model: Any) -> Mapping[str, nn.Linear]:
    found = {}
    for path in (*_MATRICES, *_MLP_MATRICES):
        try:
            module = layer.get_submodule(path)
        except AttributeError:
            module = None
        if not isinstance(module, nn.Linear):
            raise RequestError(
                f"A {type(model).__name__} has no {path} in each layer, so it cannot be cut in"
                " width.",
                hint="Leave out layers instead.",
            )
        found[path] = module
    return found


def _head_size(model: Any) -> int:
    config = model.config
    size = getattr(config, "head_dim", None)
    return int(size or config.hidden_size // config.num_attention_heads)


@dataclass
class _Moments:
    """Sums over all tokens: of the products of the attention's outputs [heads, size, size], and of
    the squares of the FFN's middle [channels]."""

    heads: Tensor
    channels: Tensor


def _second_moments(
    model: Any, layers: Sequence[Mapping[str, nn.Linear]], samples: Sequence[Sample]
) -> list[_Moments]:
    size, width = _head_size(model), width_of(model)
    moments = [
        _Moments(torch.zeros(width.heads, size, size), torch.zeros(width.channels)) for _ in layers
    ]

    def observe(part: nn.Linear, add: Any) -> Any:
        return part.register_forward_pre_hook(lambda _, inputs: add(inputs[0].detach().float()))

    def add_heads(found: _Moments, values: Tensor) -> None:
        by_head = values.reshape(-1, width.heads, size)
        found.heads += torch.einsum("thi,thj->hij", by_head, by_head).cpu()

    def add_channels(found: _Moments, values: Tensor) -> None:
        found.channels += values.reshape(-1, width.channels).square().sum(0).cpu()

    with ExitStack() as stack:
        for parts, found in zip(layers, moments, strict=True):
            for part, add in (("self_attn.o_proj", add_heads), ("mlp.down_proj", add_channels)):
                hook = observe(parts[part], lambda values, add=add, found=found: add(found, values))
                stack.callback(hook.remove)
        for sample in samples:
            with torch.no_grad():
                ids = torch.tensor([sample.ids], device=model.device)
                model(input_ids=ids, use_cache=False)
    return moments


_Kept = Mapping[str, tuple[Tensor | None, Tensor | None]]


def _kept_of_layer(
    parts: Mapping[str, nn.Linear], moments: _Moments, whole: Width, width: Width, size: int
) -> _Kept:
    """The rows and columns of each matrix that are left, by its path; None = all."""
    output = parts["self_attn.o_proj"].weight.detach().float().cpu()
    by_head = output.reshape(len(output), whole.heads, size)
    heads = torch.einsum("nhi,hij,nhj->h", by_head, moments.heads, by_head)
    by_group = heads.reshape(whole.kv_heads, -1)
    share = width.heads // width.kv_heads
    # A group counts as much as the heads that it can keep.
    groups = _largest(by_group.topk(share, dim=1).values.sum(1), width.kv_heads)
    kept_heads = torch.cat(
        [group * by_group.shape[1] + _largest(by_group[group], share) for group in groups.tolist()]
    )
    down = parts["mlp.down_proj"].weight.detach().float().cpu()
    channels = _largest(moments.channels * down.square().sum(0), width.channels)
    query, shared = _rows_of(kept_heads, size), _rows_of(groups, size)
    return {
        "self_attn.q_proj": (query, None),
        "self_attn.k_proj": (shared, None),
        "self_attn.v_proj": (shared, None),
        "self_attn.o_proj": (None, query),
        "mlp.gate_proj": (channels, None),
        "mlp.up_proj": (channels, None),
        "mlp.down_proj": (None, channels),
    }


def _largest(values: Tensor, count: int) -> Tensor:
    """The places of the largest values, in order."""
    return values.topk(count).indices.sort().values


def _rows_of(heads: Tensor, size: int) -> Tensor:
    return (heads[:, None] * size + torch.arange(size)).reshape(-1)
