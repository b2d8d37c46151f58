"""Define `DecoderSpec`: what a decoder-only transformer is, as a bundle says and engines read.

Family files map a checkpoint's configuration to a spec; graph builders and writers read nothing
else. Weights carry canonical names (see `edgesdk_export.weights`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RopeKind = Literal["default", "linear", "llama3", "yarn", "longrope"]


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding (Su et al., 2021, arXiv:2104.09864), half-split convention.

    Attributes:
        theta: base of the frequencies.
        rotary_size: how many leading values of each head are rotated (even, <= head_size).
        kind: how the frequencies are stretched for long contexts; the fields below belong to it
            and have transformers' meanings.
        factor: "linear", "llama3", "yarn".
        original_context: context in tokens before stretching; "llama3", "yarn", "longrope".
        low_freq_factor, high_freq_factor: "llama3".
        beta_fast, beta_slow: "yarn" (Peng et al., 2023, arXiv:2309.00071).
        attention_factor: multiplies cos and sin; "yarn", "longrope". 1.0 elsewhere.
        short_factors, long_factors: one per frequency [rotary_size / 2]; "longrope"
            (Ding et al., 2024, arXiv:2402.13753): short up to `original_context`, else long.
    """

    theta: float
    rotary_size: int
    kind: RopeKind = "default"
    factor: float = 1.0
    original_context: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder-only transformer with RMS norms, grouped-query attention and a gated MLP.

    Attributes:
        family: the family file that made this spec ("llama", "qwen2", ...).
        architecture: the name that the checkpoint gives itself ("LlamaForCausalLM", "llama").
        norm_placement: "pre" = norms before attention and MLP only; "sandwich" = also after each,
            before the residual is added (gemma2, gemma3).
        qk_norm: an RMS norm over each query and key head, before rope.
        qkv_bias, o_bias, mlp_bias: which linear layers carry a bias.
        activation: of the gate in the MLP.
        rope: of every layer, but for windowed layers where `local_rope` is given.
        windows: one per layer; None = the layer sees all, else it sees this many tokens, itself
            included.
        attention_scale: multiplies q.k before the softmax.
        attention_softcap, logit_softcap: c in c * tanh(x / c); None = none.
        embedding_scale: multiplies the embedded tokens.
        tied: the head is the embedding matrix.
    """

    family: str
    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    context_length: int
    norm_eps: float
    rope: RopeSpec
    windows: tuple[int | None, ...]
    attention_scale: float
    tied: bool
    local_rope: RopeSpec | None = None
    norm_placement: Literal["pre", "sandwich"] = "pre"
    qk_norm: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    activation: Literal["silu", "gelu_tanh"] = "silu"
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0

    def rope_of(self, layer: int) -> RopeSpec:
        """The rope of one layer."""
        if self.local_rope is not None and self.windows[layer] is not None:
            return self.local_rope
        return self.rope

    @property
    def parameters(self) -> int:
        """How many weights the model has (a tied head counted once)."""
        return sum(_product(shape) for shape in canonical_shapes(self).values())


def canonical_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """The canonical name and shape of every weight of a decoder, in graph order.

    Linear weights are [out, in]. Norm weights are the gains themselves (a checkpoint that stores
    `gain - 1`, as gemma's safetensors do, is corrected when it is read). Query and key rows are in
    the half-split rope order.
    """
    hidden, inner = spec.hidden_size, spec.intermediate_size
    q_rows, kv_rows = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (spec.vocab_size, hidden)}
    for i in range(spec.layers):
        at = f"layers.{i}."
        shapes[at + "input_norm.weight"] = (hidden,)
        for part, rows in (("q", q_rows), ("k", kv_rows), ("v", kv_rows)):
            shapes[f"{at}{part}.weight"] = (rows, hidden)
            if spec.qkv_bias:
                shapes[f"{at}{part}.bias"] = (rows,)
        if spec.qk_norm:
            shapes[at + "q_norm.weight"] = (spec.head_size,)
            shapes[at + "k_norm.weight"] = (spec.head_size,)
        shapes[at + "o.weight"] = (hidden, q_rows)
        if spec.o_bias:
            shapes[at + "o.bias"] = (hidden,)
        if spec.norm_placement == "sandwich":
            shapes[at + "post_attention_norm.weight"] = (hidden,)
        shapes[at + "pre_mlp_norm.weight"] = (hidden,)
        for part, shape in (
            ("gate", (inner, hidden)),
            ("up", (inner, hidden)),
            ("down", (hidden, inner)),
        ):
            shapes[f"{at}{part}.weight"] = shape
            if spec.mlp_bias:
                shapes[f"{at}{part}.bias"] = shape[:1]
        if spec.norm_placement == "sandwich":
            shapes[at + "post_mlp_norm.weight"] = (hidden,)
    shapes["final_norm.weight"] = (hidden,)
    if not spec.tied:
        shapes["head.weight"] = (spec.vocab_size, hidden)
    return shapes


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
