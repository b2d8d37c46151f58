"""Low-rank changes of a decoder's linear layers, by canonical name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgesdk.bundle.spec import DecoderSpec, canonical_shapes
from edgesdk.errors import ConfigMismatch
from edgesdk_export.weights import Float32


@dataclass(frozen=True)
class LowRankChange:
    """What is added to the matrix of a linear layer: up @ down.

    Attributes:
        down: float32 [rank, columns]; PEFT's lora_A.
        up: float32 [rows, rank]; PEFT's lora_B, times the adapter's scale.
    """

    down: Float32
    up: Float32

    @property
    def rank(self) -> int:
        """Its rank."""
        return len(self.down)


@dataclass(frozen=True)
class LowRankWeights:
    """An adapter before it is written.

    Attributes:
        changes: by canonical linear layer, such as "layers.0.q".
        sha256: of the file that they were read from.
    """

    changes: Mapping[str, LowRankChange]
    sha256: str

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(change.rank for change in self.changes.values())

    @property
    def targets(self) -> tuple[str, ...]:
        """The layers that are changed, without their numbers, such as "q"."""
        return tuple(sorted({name.rpartition(".")[2] for name in self.changes}))

    @property
    def parameters(self) -> int:
        """How many weights it has."""
        return sum(change.down.size + change.up.size for change in self.changes.values())


def check_fits(weights: LowRankWeights, spec: DecoderSpec, where: str) -> None:
    """Refuse an adapter whose matrices are not those of a decoder.

    Args:
        where: the decoder, for the error.

    Raises:
        ConfigMismatch: a layer is not there, or has another shape.
    """
    shapes = canonical_shapes(spec)
    for name, change in weights.changes.items():
        if name == "head" and spec.tied:
            raise ConfigMismatch(
                f"The adapter changes lm_head, which is the embedding in {where} too.",
                hint="Train without lm_head among the target modules.",
            )
        wanted = shapes.get(f"{name}.weight")
        if wanted is None:
            raise ConfigMismatch(
                f"The adapter changes {name}, which {where} does not have.",
                hint="Give the bundle of the model that the adapter was trained on.",
            )
        found = (len(change.up), change.down.shape[1])
        if found != wanted:
            raise ConfigMismatch(
                f"The adapter changes {name} as a matrix of {found[0]} x {found[1]}; in {where} it"
                f" has {wanted[0]} x {wanted[1]}.",
                hint="Give the bundle of the model that the adapter was trained on.",
            )
