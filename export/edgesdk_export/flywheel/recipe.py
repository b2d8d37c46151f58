"""A flywheel's recipe: a TOML file that says how a turn learns, compares and decides."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from edgesdk_export.distill.recipe import Share, TrainingSection

Probability = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(gt=0)]


class CollectingRecipe(TrainingSection):
    """What is learned from.

    Attributes:
        held_out: the share of the prompts that models are compared on, and never trained on.
        calibration: the share that the confidence is trained and calibrated with.
        near: from which similarity on two prompts count as one, 0 to 1.
        max_length: tokens of a prompt with its answer; longer ones are left out.
    """

    held_out: Annotated[float, Field(gt=0, le=0.5)] = 0.15
    calibration: Annotated[float, Field(ge=0, le=0.5)] = 0.2
    near: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_length: Annotated[int, Field(ge=16, le=2**17)] = 512


class LearningRecipe(TrainingSection):
    """How it is learned.

    Attributes:
        lora_rank: rank of the adapter's matrices; 0 trains all weights.
        lora_layers: how many layers have them, from the last one on; 0 for all.
        steps: optimizer steps.
        batch: prompts of a step.
        learning_rate: the highest; it rises over `warmup` of the steps, then falls as a cosine.
        save_every: steps between checkpoints, from which a stopped run goes on.
    """

    lora_rank: Annotated[int, Field(ge=0)] = 8
    lora_layers: Annotated[int, Field(ge=0)] = 0
    steps: Count = 500
    batch: Count = 8
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 5e-4
    warmup: Share = 0.05
    save_every: Count = 100
    seed: int = 0


class DecidingRecipe(TrainingSection):
    """When the new model takes the place of the old one, and how it is calibrated.

    Attributes:
        chance: probability that as large a gain on the held-out prompts is luck, at most.
        perplexity_rise: share by which a regression text's perplexity may rise.
        answers_lost: share of regression prompts, or of a task's metric, that may be lost.
        max_tokens: of an answer that is compared.
        alpha, delta: of the risk guarantee; see `edgesdk.hybrid.client.HybridClient.calibrate`.
    """

    chance: Probability = 0.05
    perplexity_rise: Annotated[float, Field(ge=0)] = 0.02
    answers_lost: Share = 0.02
    max_tokens: Count = 256
    alpha: Probability = 0.2
    delta: Probability = 0.05


class FlywheelRecipe(TrainingSection):
    """A whole recipe. Every key has a default."""

    collecting: CollectingRecipe = CollectingRecipe()
    learning: LearningRecipe = LearningRecipe()
    deciding: DecidingRecipe = DecidingRecipe()
