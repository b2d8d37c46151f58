"""Read a distillation's recipe: a TOML file that says what is trained, on what, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from edgesdk.errors import InvalidOption, RequestError
from edgesdk_export.distill.divergence import divergence_named
from edgesdk_export.distill.quantize_recipe import QuantizeRecipe
from edgesdk_export.recipes.recipe import read_recipe_file

Share = Annotated[float, Field(ge=0, le=1)]


def _known_loss(name: str) -> str:
    try:
        divergence_named(name)
    except InvalidOption as error:
        raise ValueError(str(error)) from None
    return name


class TrainingSection(BaseModel):
    """A part of a training's recipe: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


AnyRecipe = TypeVar("AnyRecipe", bound=TrainingSection)


class StudentRecipe(TrainingSection):
    """What the student is.

    Attributes:
        layers: how many decoder layers are left of the checkpoint; None leaves it as it is.
        heads: how many attention heads are left in each layer; None = all of the groups left.
        kv_heads: how many groups of heads with keys and values of their own; None = all.
        channels: how many channels of the FFN's middle; None = all.
        vocabulary: "whole", or the tokens "used" by the data, and what they are merged from.
        measured_sequences: on how many sequences it is measured what can be left out.
    """

    layers: Annotated[int, Field(gt=0)] | None = None
    heads: Annotated[int, Field(gt=0)] | None = None
    kv_heads: Annotated[int, Field(gt=0)] | None = None
    channels: Annotated[int, Field(gt=0)] | None = None
    vocabulary: Literal["whole", "used"] = "whole"
    measured_sequences: Annotated[int, Field(gt=0)] = 8


class DataRecipe(TrainingSection):
    """What the student reads.

    Attributes:
        max_length: tokens of a sequence.
        held_out: the share of the sequences that nothing is learned from, to measure on.
    """

    max_length: Annotated[int, Field(ge=16, le=2**17)] = 512
    held_out: Annotated[float, Field(gt=0, le=0.5)] = 0.05


class TrainingRecipe(TrainingSection):
    """How the student learns.

    Attributes:
        loss: the divergence from the teacher, by its name.
        teacher_tokens: how many of the teacher's likeliest tokens count by themselves.
        cross_entropy: the share of plain cross-entropy in the loss.
        on_policy: the share of steps on the student's own writing.
        cross_entropy_end, on_policy_end: what the shares come to in the last step, in equal steps;
            None = they stay.
        hidden_states: what the layers' distance from the teacher's counts in the loss; 0 = nothing.
        sampled_tokens: how long that is.
        steps: optimizer steps.
        batch: sequences of a step.
        micro_batch: sequences that are in memory at once; fewer where memory runs out.
        learning_rate: the highest; it rises over `warmup` of the steps, then falls as a cosine.
        lora_rank: rank of LoRA matrices that are trained instead of all weights; 0 for all.
        bfloat16: whether to multiply in it; None = where the machine is faster at that.
        save_every: steps between checkpoints, from which a stopped run goes on.
    """

    loss: Annotated[str, AfterValidator(_known_loss)] = "forward_kl"
    teacher_tokens: Annotated[int, Field(gt=0)] = 64
    cross_entropy: Share = 0.0
    on_policy: Share = 0.0
    cross_entropy_end: Share | None = None
    on_policy_end: Share | None = None
    hidden_states: Annotated[float, Field(ge=0)] = 0.0
    sampled_tokens: Annotated[int, Field(gt=0)] = 64
    steps: Annotated[int, Field(gt=0)] = 500
    batch: Annotated[int, Field(gt=0)] = 8
    micro_batch: Annotated[int, Field(gt=0)] = 4
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 2e-4
    warmup: Share = 0.05
    lora_rank: Annotated[int, Field(ge=0)] = 0
    bfloat16: bool | None = None
    save_every: Annotated[int, Field(gt=0)] = 100
    seed: int = 0


class DistillRecipe(TrainingSection):
    """A whole recipe. Every key has a default.

    Attributes:
        quantize: the number format that the student trains through; None = none.
    """

    student: StudentRecipe = StudentRecipe()
    data: DataRecipe = DataRecipe()
    training: TrainingRecipe = TrainingRecipe()
    quantize: QuantizeRecipe | None = None

    @model_validator(mode="after")
    def _consistent(self) -> DistillRecipe:
        if self.quantize is not None and self.training.lora_rank:
            raise ValueError("low-rank matrices take quantized weights off their grid")
        return self


def read_training_recipe(path: Path, kind: type[AnyRecipe]) -> AnyRecipe:
    """Read a recipe of this kind.

    Raises:
        RequestError: it cannot be read, is not TOML, or has a wrong key or value, which is named.
    """
    values = read_recipe_file(path)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RequestError(f"The recipe {path}: {place}: {first['msg']}.") from None
