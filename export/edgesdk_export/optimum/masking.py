"""Measure what a foreign graph does to its attention scores before the softmax.

Masks are spelled in a hundred ways, and a position bias looks like a mask. So the part between
scores and softmax is cut out and run on chosen scores: zeros show what is added, ones show the
scale. GroupQueryAttention can express a scale and a causal mask with a window, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime

from edgesdk.engines.devices import HOST_PROVIDER
from edgesdk.errors import ExportError
from edgesdk_export.optimum.attention_patterns import AttentionPattern

Array = npt.NDArray[np.float32]

# (past tokens, new tokens) that causality is checked on; one long past finds the window.
_SMALL = ((0, 5), (7, 3))
_LONGEST = 32768
_MASKED_BELOW = -1e3


@dataclass(frozen=True)
class HeadShape:
    """heads: of the query; kv_heads: of the cache; head_size: of both."""

    heads: int
    kv_heads: int
    head_size: int


@dataclass(frozen=True)
class Masking:
    """Scale and window that GroupQueryAttention applies to the product of query and key.

    Attributes:
        scale: multiplies it.
        window: a token sees this many tokens, itself included; None = all before it.
    """

    scale: float
    window: int | None


def measure_masking(
    graph: ir.Graph, attentions: list[AttentionPattern], shape: HeadShape, context: int, work: Path
) -> Iterator[Masking]:
    """Scale and window of every layer, one after the other.

    Args:
        work: the folder the graph was loaded from; a temporary model is written there.

    Raises:
        ExportError: a layer adds a bias, caps its scores, or masks in a way that
            GroupQueryAttention cannot express.
    """
    cuts = [value for a in attentions for value in (a.present_key, a.present_value)]
    for attention in attentions:
        yield _MaskProbe(graph, attention, cuts, shape, work).masking(min(context, _LONGEST))


class _MaskProbe:
    """The part of a graph between one layer's scores and its softmax, ready to run."""

    def __init__(
        self,
        graph: ir.Graph,
        attention: AttentionPattern,
        cuts: list[ir.Value],
        shape: HeadShape,
        work: Path,
    ) -> None:
        self._attention = attention
        self._shape = shape
        computed = [
            factor.value
            for factor in attention.factors
            if ir.convenience.get_const_tensor(factor.value) is None
        ]
        # Inputs that stand inside other inputs' history are cut there: that is the point.
        part = ir.convenience.extract(
            graph,
            [*graph.inputs, *cuts, attention.query, attention.scores],
            [attention.logits, *dict.fromkeys(computed)],
        )
        self._computed = [value.name for value in dict.fromkeys(computed)]
        for value in part.inputs:
            if value.type is None:
                value.type = ir.TensorType(ir.DataType.FLOAT)
                value.shape = ir.Shape([None, None, None, None])
        for value in part.outputs:
            value.type = ir.TensorType(ir.DataType.FLOAT)
        path = work / "masking.onnx"
        ir.save(ir.Model(part, ir_version=10), path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=[HOST_PROVIDER]
            )
        except Exception as error:
            raise self._refusal(f"its mask cannot be run by itself ({error})") from error
        finally:
            path.unlink(missing_ok=True)

    def masking(self, longest: int) -> Masking:
        """Measure what happens between scores and softmax."""
        last_row = self._run(longest - 1, 1, 0.0)[0][0, 0, 0]
        seen = int((last_row > _MASKED_BELOW).sum())
        window = None if seen == longest else seen
        slopes = []
        for past, new in ((longest - 1, 1), *_SMALL):
            added, _ = self._run(past, new, 0.0)
            at_one, _ = self._run(past, new, 1.0)
            at_three, _ = self._run(past, new, 3.0)
            visible = np.broadcast_to(_causal(past, new, window), added.shape)
            if not np.array_equal(added > _MASKED_BELOW, visible):
                raise self._refusal("its mask is neither causal nor a sliding window")
            if np.abs(added[visible]).max() > 1e-5:
                raise self._refusal(
                    "it adds a bias to its attention scores (as ALiBi does), which"
                    " GroupQueryAttention cannot express"
                )
            slope = at_one[visible]
            if not np.allclose(at_three[visible], 3 * slope, rtol=1e-4, atol=0):
                raise self._refusal("it caps its attention scores")
            slopes.append(slope)
        every = np.concatenate(slopes)
        if np.ptp(every) > 1e-5 * abs(every[0]):
            raise self._refusal("it scales its attention scores differently from place to place")
        return Masking(scale=float(every[0]) * self._factor(), window=window)

    def _factor(self) -> float:
        """The product of the scalars on query and key."""
        values = dict(zip(self._computed, self._run(3, 2, 0.0)[1], strict=True))
        result = 1.0
        for factor in self._attention.factors:
            constant = ir.convenience.get_const_tensor(factor.value)
            array = values[factor.value.name] if constant is None else constant.numpy()
            if array.size != 1:
                raise self._refusal("query or key is scaled by more than one number")
            number = float(array.reshape(()))
            result = result / number if factor.inverse else result * number
        return result

    def _run(self, past: int, new: int, score: float) -> tuple[Array, list[Array]]:
        """Run to the input of the softmax [1, heads, new, past + new], and the computed factors."""
        total, shape = past + new, self._shape
        feeds: dict[str, npt.NDArray[np.generic]] = {}
        for needed in self._session.get_inputs():
            name = needed.name
            if name == self._attention.scores.name:
                feeds[name] = np.full((1, shape.heads, new, total), score, np.float32)
            elif name == self._attention.query.name:
                feeds[name] = np.zeros((1, shape.heads, new, shape.head_size), np.float32)
            elif name == "input_ids":
                feeds[name] = np.zeros((1, new), np.int64)
            elif name == "position_ids":
                feeds[name] = np.arange(past, total, dtype=np.int64)[None]
            elif name == "attention_mask":
                feeds[name] = np.ones((1, total), np.int64)
            else:
                tokens = past if name.startswith("past_key_values.") else total
                feeds[name] = np.zeros((1, shape.kv_heads, tokens, shape.head_size), np.float32)
        try:
            logits, *factors = self._session.run(None, feeds)
        except Exception as error:
            raise self._refusal(f"its mask cannot be run by itself ({error})") from error
        wanted = (1, shape.heads, new, total)
        if logits.ndim != 4:
            raise self._refusal(f"its attention scores have {logits.ndim} dimensions, not 4")
        return np.broadcast_to(logits, wanted), factors

    def _refusal(self, what: str) -> ExportError:
        return ExportError(
            f"Layer {self._attention.layer} of the ONNX graph: {what}.",
            hint="This architecture cannot be exported for the shared KV cache.",
        )


def _causal(past: int, new: int, window: int | None) -> npt.NDArray[np.bool_]:
    query = np.arange(past, past + new)[:, None]
    key = np.arange(past + new)[None]
    visible = key <= query
    return visible if window is None else visible & (key > query - window)
