"""Define `EncoderSpec`: what an encoder (BERT and its kin) is, beside `edgesdk.bundle.spec`.

An ONNX encoder of a bundle has these inputs and outputs:

    input_ids        int64   [batch, sequence]    filled up on the right, with any ids
    lengths          int32   [batch]              tokens of each text
    token_types      int64   [batch, sequence]    where the spec has token types

    hidden_states    float32 [batch, sequence, hidden]   after the last norm
    scores           float32 [batch, labels]             where the spec has labels
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgesdk.bundle.spec import RopeSpec

INPUT_IDS, LENGTHS, TOKEN_TYPES = "input_ids", "lengths", "token_types"
HIDDEN_STATES, SCORES = "hidden_states", "scores"

Activation = Literal["gelu", "gelu_tanh", "silu", "relu"]


@dataclass(frozen=True)
class ScoreHead:
    """What makes scores of hidden states: dense, activation, a norm or none, and labels.

    Attributes:
        labels: scores for each text.
        pooling: which hidden state it reads: the first one, or the mean.
        activation: after the dense layer.
        dense_bias: of the dense layer; the labels always have one.
        normed: whether a norm follows the activation.
    """

    labels: int
    pooling: Literal["cls", "mean"] = "cls"
    activation: Literal["tanh", "gelu"] = "tanh"
    dense_bias: bool = True
    normed: bool = False


@dataclass(frozen=True)
class EncoderSpec:
    """A transformer whose tokens all see each other, with layer norms.

    Attributes:
        family, architecture: as in `DecoderSpec`.
        context_length: most tokens of a text, special ones included.
        position_rows: rows of the learned position embeddings; 0 = it has rope.
        first_position: the row of the first token.
        token_types: rows of the token type embeddings; 0 = it has none.
        rope: of every layer, but for windowed layers where `local_rope` is given.
        windows: one per layer; None = a token sees all, else this many on each side of it.
        norm_placement: "post" = after each residual sum (BERT); "pre" = before attention and MLP,
            and one after the last layer. The first layer's attention has none: it reads what the
            embeddings' norm gives.
        norm_bias, attention_bias, mlp_bias: which of them carry a bias.
        gated: the MLP is down(activation(gate x) * up x), else down(activation(up x)).
        head: of a model that scores; None = it embeds.
    """

    family: str
    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    context_length: int
    norm_eps: float
    windows: tuple[int | None, ...]
    position_rows: int = 0
    first_position: int = 0
    token_types: int = 0
    rope: RopeSpec | None = None
    local_rope: RopeSpec | None = None
    norm_placement: Literal["pre", "post"] = "post"
    norm_bias: bool = True
    attention_bias: bool = True
    mlp_bias: bool = True
    gated: bool = False
    activation: Activation = "gelu"
    head: ScoreHead | None = None

    @property
    def head_size(self) -> int:
        """Columns of one attention head."""
        return self.hidden_size // self.heads

    @property
    def parameters(self) -> int:
        """How many weights it has."""
        shapes = encoder_shapes(self).values()
        return sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes)


def encoder_shapes(spec: EncoderSpec) -> dict[str, tuple[int, ...]]:
    """The canonical name and shape of every weight of an encoder, in graph order."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (spec.vocab_size, hidden)}

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = (hidden,)
        if spec.norm_bias:
            shapes[f"{name}.bias"] = (hidden,)

    def matrix(name: str, rows: int, columns: int, *, biased: bool) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        if biased:
            shapes[f"{name}.bias"] = (rows,)

    if spec.position_rows:
        shapes["positions.weight"] = (spec.position_rows, hidden)
    if spec.token_types:
        shapes["token_types.weight"] = (spec.token_types, hidden)
    norm("embed_norm")
    for i in range(spec.layers):
        at = f"layers.{i}."
        if spec.norm_placement == "post" or i:
            norm(at + "attention_norm")
        for part in ("q", "k", "v", "o"):
            matrix(at + part, hidden, hidden, biased=spec.attention_bias)
        norm(at + "mlp_norm")
        for part in ("gate", "up") if spec.gated else ("up",):
            matrix(at + part, inner, hidden, biased=spec.mlp_bias)
        matrix(at + "down", hidden, inner, biased=spec.mlp_bias)
    if spec.norm_placement == "pre":
        norm("final_norm")
    if spec.head is not None:
        matrix("head.dense", hidden, hidden, biased=spec.head.dense_bias)
        if spec.head.normed:
            norm("head.norm")
        matrix("head.labels", spec.head.labels, hidden, biased=True)
    return shapes
