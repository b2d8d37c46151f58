"""Turn the flywheel once: collect, learn, build, compare, calibrate, promote.

Each step writes down what it came to when it is finished. A turn that was stopped goes on with the
first step that is not, and learning from its last checkpoint. Nothing that an app loads changes
before the last step, which replaces one file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgesdk.errors import RequestError
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.confidence.artifacts import value_from_json
from edgesdk.hybrid.storage.journal import Journal, TrainingSet, training_set
from edgesdk.hybrid.storage.parquet import read_parquet
from edgesdk_export.distill.samples import read_samples
from edgesdk_export.distill.students import load_trainable, prompt_encoder
from edgesdk_export.distill.verifiers import Verifier, same_as_expected
from edgesdk_export.flywheel.candidate import build_candidate, load_promoted
from edgesdk_export.flywheel.comparison import Verdict, compare
from edgesdk_export.flywheel.examples import (
    PARTS,
    Example,
    Shares,
    collect_examples,
    read_examples,
    write_examples,
)
from edgesdk_export.flywheel.learning import learn
from edgesdk_export.flywheel.recalibration import Recalibration, recalibrate
from edgesdk_export.flywheel.recipe import FlywheelRecipe
from edgesdk_export.flywheel.regression import RegressionSet
from edgesdk_export.flywheel.state import (
    LEARNED,
    PROFILE,
    FlywheelFolder,
    PromotedModel,
    TurnFolder,
)
from edgesdk_export.progress import ExportProgress

# Fewer held-out prompts could show no gain, however large it is.
_MIN_HELD_OUT = 5


@dataclass(frozen=True)
class FlywheelJob:
    """What a turn is made of.

    Attributes:
        folder: of the flywheel; made by its first turn.
        journals: of one device or of many: as the client writes them, or exported as Parquet.
        checkpoint, bundle: of the model that the flywheel begins with; None in later turns, which
            start from the current one.
        recipe: how.
        regression: what must not become worse.
        clouds: that the app's client asks; a calibration holds for them alone.
        labelled: prompts with answers for the confidence, drawn as those to come will be; None for
            those that the journals give.
        verifier: tells whether an answer to a held-out prompt is right.
    """

    folder: Path
    journals: tuple[Path, ...]
    checkpoint: Path | None = None
    bundle: Path | None = None
    recipe: FlywheelRecipe = field(default_factory=FlywheelRecipe)
    regression: RegressionSet = field(default_factory=RegressionSet)
    clouds: tuple[Cloud, ...] = ()
    labelled: Path | None = None
    verifier: Verifier = same_as_expected


@dataclass(frozen=True)
class TurnResult:
    """What came of a turn.

    Attributes:
        turn: its number.
        examples: how many there were of each part, and what was left out.
        verdict: the comparison, and whether the new model is the better one.
        recalibration: of the new model's confidence; None where it was not promoted.
        current: the model that is current now.
    """

    turn: int
    examples: dict[str, Any]
    verdict: Verdict
    recalibration: Recalibration | None
    current: PromotedModel

    def to_json(self) -> dict[str, Any]:
        """All of it, of JSON's types."""
        found = asdict(self)
        return found | {"current": self.current.to_json()}


def turn(job: FlywheelJob, progress: ExportProgress) -> TurnResult:
    """Turn the flywheel once; the same job after a stop or a kill goes on where that was.

    Raises:
        RequestError: there is no model to begin with, a journal cannot be read, or another process
            turns this flywheel.
        TooLittleData: the journals have too few escalated prompts with text.
        TrainingError: the loss is no number.
    """
    folder = FlywheelFolder(job.folder)
    # Before the folder is made: a flywheel without a model is none.
    first = None if folder.promoted() else _first_model(job)
    with folder.locked():
        if first is not None and not folder.promoted():
            folder.begin(first)
        return _turned(job, folder, progress)


def _turned(job: FlywheelJob, folder: FlywheelFolder, progress: ExportProgress) -> TurnResult:
    current = folder.current
    state = folder.open_turn(_inputs(job, current))
    examples = _collect(job, state, progress)
    _learn(job, current, state, progress)
    candidate = build_candidate(
        current, state, adapter=job.recipe.learning.lora_rank > 0, progress=progress
    )
    verdict = _compare(job, current, candidate, state, progress)
    if not verdict.better:
        folder.note("refused", state.number, verdict.reason)
        return TurnResult(state.number, examples, verdict, None, current)
    calibrated = _recalibrate(job, candidate, state, progress)
    promoted = replace(candidate, profile=state.path / PROFILE)
    folder.promote(promoted, f"{verdict.reason} {calibrated.words}")
    return TurnResult(state.number, examples, verdict, calibrated, promoted)


def _first_model(job: FlywheelJob) -> PromotedModel:
    if job.checkpoint is None or job.bundle is None:
        raise RequestError(
            f"{job.folder} is no flywheel's folder yet.",
            hint="The first turn needs --checkpoint and --bundle, the model to begin with.",
        )
    return PromotedModel(0, job.checkpoint.resolve(), job.bundle.resolve())


def _inputs(job: FlywheelJob, current: PromotedModel) -> dict[str, Any]:
    return {
        "current": current.to_json(),
        "recipe": job.recipe.model_dump(mode="json"),
        "journals": [str(path.resolve()) for path in job.journals],
        "labelled": None if job.labelled is None else str(job.labelled.resolve()),
    }


def _collect(job: FlywheelJob, state: TurnFolder, progress: ExportProgress) -> dict[str, Any]:
    done = state.result("examples")
    if done is not None:
        return done
    progress.stage("Reading journals", len(job.journals))
    recipe = job.recipe.collecting
    divided, counts = collect_examples(
        _training_sets(job.journals, progress.advance),
        Shares(recipe.held_out, recipe.calibration),
        near=recipe.near,
    )
    for part in PARTS:
        write_examples(state.path / f"{part}.jsonl", divided[part])
    if counts.parts["held_out"] < _MIN_HELD_OUT:
        raise RequestError(
            f"The journals give {sum(counts.parts.values())} escalated prompts with text, of which"
            f" {counts.parts['held_out']} are held out; {counts.without_text} had no text.",
            hint=f"A turn needs {_MIN_HELD_OUT} held out. Apps keep texts with"
            " Journal(..., keep_texts=True).",
        )
    return state.finish("examples", asdict(counts))


def _training_sets(
    journals: Sequence[Path], advance: Callable[[int], None]
) -> Iterator[TrainingSet]:
    for number, path in enumerate(journals, start=1):
        if path.suffix == ".parquet":
            yield training_set(read_parquet(path))
        else:
            if not path.is_file():
                # Opening it would make one.
                raise RequestError(f"There is no journal at {path}.")
            with closing(Journal(path)) as journal:
                yield training_set(journal.entries())
        advance(number)


def _learn(
    job: FlywheelJob, current: PromotedModel, state: TurnFolder, progress: ExportProgress
) -> None:
    """Train on the collected examples; what was learned lies in the turn's folder then."""
    if state.result("learned") is not None:
        return
    student = load_trainable(current.checkpoint)
    samples = read_samples(
        [state.path / "training.jsonl"],
        prompt_encoder(student.text, state.path),
        end=student.end,
        max_length=job.recipe.collecting.max_length,
    )
    learn(
        student,
        samples,
        job.recipe.learning,
        state.path / LEARNED,
        state.path / "checkpoints",
        progress,
    )
    state.finish("learned", {"samples": len(samples)})


def _compare(
    job: FlywheelJob,
    current: PromotedModel,
    candidate: PromotedModel,
    state: TurnFolder,
    progress: ExportProgress,
) -> Verdict:
    done = state.result("verdict")
    if done is not None:
        return value_from_json(Verdict, done)
    progress.stage("Comparing the new model with the old one", 1)
    with load_promoted(current) as old, load_promoted(candidate) as new:
        verdict = compare(
            old,
            new,
            read_examples(state.path / "held_out.jsonl"),
            job.regression,
            job.recipe.deciding,
            job.verifier,
        )
    progress.advance(1)
    state.finish("verdict", asdict(verdict))
    return verdict


def _recalibrate(
    job: FlywheelJob, candidate: PromotedModel, state: TurnFolder, progress: ExportProgress
) -> Recalibration:
    done = state.result("recalibration")
    if done is not None:
        return value_from_json(Recalibration, done)
    progress.stage("Calibrating the new model's confidence", 1)
    with load_promoted(candidate) as model:
        found = recalibrate(
            model,
            job.clouds,
            *_labelled(job, state),
            job.recipe.deciding,
            job.verifier,
            state.path / PROFILE,
        )
    progress.advance(1)
    state.finish("recalibration", asdict(found))
    return found


def _labelled(job: FlywheelJob, state: TurnFolder) -> tuple[list[Example], list[Example]]:
    """Prompts to train the confidence with, and others to choose its threshold with."""
    if job.labelled is None:
        profile, calibration = (
            read_examples(state.path / f"{part}.jsonl") for part in ("profile", "calibration")
        )
        return profile, calibration
    given = read_examples(job.labelled)
    return given[::2], given[1::2]
