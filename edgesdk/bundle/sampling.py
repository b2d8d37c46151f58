"""The sampling that a model's makers recommend: what a checkpoint says of it, and a bundle keeps.

Sources: transformers' GenerationConfig (`generation_config.json`), and llama.cpp's metadata keys
`general.sampling.*`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

# By option: its key in a GGUF, and the bounds that `edgesdk.Options` has for it.
_FIELDS: dict[str, tuple[str, float, float]] = {
    "temperature": ("general.sampling.temp", 0, math.inf),
    "top_k": ("general.sampling.top_k", 0, 2**31 - 1),
    "top_p": ("general.sampling.top_p", 1e-6, 1),
    "min_p": ("general.sampling.min_p", 0, 1),
    "repetition_penalty": ("general.sampling.penalty_repeat", 1e-6, math.inf),
}


class Sampling(BaseModel):
    """Options by name; None where the makers say nothing. See `edgesdk.Options`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    def options(self) -> dict[str, float]:
        """Those that are given, as keyword arguments of `edgesdk.Options`."""
        return {name: value for name, value in self.model_dump().items() if value is not None}

    def gguf_metadata(self) -> dict[str, float]:
        """The same by llama.cpp's keys."""
        return {_FIELDS[name][0]: value for name, value in self.options().items()}


def sampling_of_config(config: Mapping[str, Any]) -> Sampling | None:
    """Read a `generation_config.json`; None where it asks for nothing but the likeliest tokens.

    As in transformers, only the repetition penalty counts unless `do_sample` is true, and the
    temperature is then 1 where none is given.
    """
    names = set(_FIELDS) if config.get("do_sample") is True else {"repetition_penalty"}
    values: dict[str, Any] = {"temperature": 1.0} if "temperature" in names else {}
    return _checked(values | {name: config.get(name, values.get(name)) for name in names})


def sampling_of_metadata(metadata: Mapping[str, Any]) -> Sampling | None:
    """Read the metadata of a GGUF; None where they say nothing of sampling."""
    return _checked({name: metadata.get(key) for name, (key, _, _) in _FIELDS.items()})


def _checked(values: Mapping[str, object]) -> Sampling | None:
    """What of the values is in its bounds: a recommendation that is none is left out."""
    taken: dict[str, float] = {}
    for name, (_, low, high) in _FIELDS.items():
        value = values.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
            if name == "top_k" and value != int(value):
                continue
            # GGUFs hold float32: 0.7 is 0.699999988.
            taken[name] = int(value) if name == "top_k" else float(f"{value:.6g}")
    neutral = {"repetition_penalty": 1.0}
    taken = {name: value for name, value in taken.items() if neutral.get(name) != value}
    return Sampling.model_validate(taken) if taken else None
