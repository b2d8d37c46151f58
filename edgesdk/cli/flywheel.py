"""`edgesdk flywheel`: train the local model on what was escalated, and ship what is better."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgesdk.cli.cloud_options import cloud_options, clouds_of
from edgesdk.cli.output import message_console, print_json, result_console, stage_progress_bar
from edgesdk.errors import requires_extra
from edgesdk.store import Store, find_checkpoint

if TYPE_CHECKING:
    from edgesdk_export.flywheel.state import FlywheelFolder
    from edgesdk_export.flywheel.turn import TurnResult

_TURN_EPILOG = """\b
FOLDER keeps all turns, the current model and the history. JOURNALS are those of the app's hybrid
client, of one device or of many: its own files, or Parquet (edgesdk journal PATH --parquet FILE).

\b
Examples:
  edgesdk flywheel turn ./wheel app.journal --checkpoint smollm2-135m-instruct --bundle ./bundle \\
      --cloud https://api.openai.com/v1 --cloud-model gpt-5-mini --cloud-key-env OPENAI_API_KEY
  edgesdk flywheel turn ./wheel device-*.parquet --cloud groq:llama-3.3-70b-versatile
  edgesdk flywheel history ./wheel
  edgesdk flywheel rollback ./wheel

Escalated prompts with the cloud's answers become training data: only text that the app opted to
keep, private values as placeholders, each prompt once. By the hash of a prompt some are held out
for good, and others train and calibrate the confidence. The new model is promoted where it gets
more of the held-out prompts right and is worse in none of the regression set. A turn that was
stopped goes on where it was when the same command is given again.

\b
A recipe is a TOML file. Its keys and what they are by default:
  [collecting]  held_out = 0.15, calibration = 0.2, near = 0.9, max_length = 512
  [learning]    lora_rank = 8 (0 trains all weights), lora_layers = 0 (all), steps = 500, batch = 8,
                learning_rate = 5e-4, warmup = 0.05, save_every = 100, seed = 0
  [deciding]    chance = 0.05, perplexity_rise = 0.02, answers_lost = 0.02, max_tokens = 256,
                alpha = 0.2, delta = 0.05
"""
_FOLDER = click.argument("folder", type=click.Path(path_type=Path, file_okay=False))


@click.group("flywheel")
def command() -> None:
    """Train the local model on what had to be escalated."""
    # Read when the libraries are imported; their bars would be drawn into ours.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@command.command("turn", epilog=_TURN_EPILOG)
@_FOLDER
@click.argument(
    "journals",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
)
@click.option("--checkpoint", help="Whose weights are trained, in the first turn.")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The bundle of it that the app runs, in the first turn.",
)
@click.option(
    "--recipe",
    "recipe_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A .toml file that says how.",
)
@click.option(
    "--regression",
    "regression_files",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="What must not become worse: a .txt (perplexity) or a .jsonl (prompts with answers); can"
    " be given several times (default: reference prose from Python itself).",
)
@click.option("--task", "tasks", multiple=True, help="A task of lm-evaluation-harness, likewise.")
@click.option(
    "--include",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A folder with tasks of your own.",
)
@click.option(
    "--labelled",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A .jsonl of prompts with answers, drawn as those to come will be, for the confidence"
    " (default: escalated ones, which are harder).",
)
@click.option("--verifier", help="module:function that says whether an answer is right.")
@cloud_options
@click.option("--json", "as_json", is_flag=True, help="Print what came of it as JSON.")
def turn_command(
    folder: Path,
    journals: tuple[Path, ...],
    checkpoint: str | None,
    bundle: Path | None,
    recipe_file: Path | None,
    regression_files: tuple[Path, ...],
    tasks: tuple[str, ...],
    include: Path | None,
    labelled: Path | None,
    verifier: str | None,
    cloud: str | None,
    cloud_model: str | None,
    cloud_key_env: str | None,
    as_json: bool,
) -> None:
    """Turn the flywheel once on JOURNALS.

    --cloud names the endpoint that the app asks: the risk guarantee holds for it alone. It is not
    asked here.
    """
    with requires_extra("distill", needed_for="The flywheel"):
        from edgesdk_export.distill.recipe import read_training_recipe
        from edgesdk_export.distill.verifiers import same_as_expected, verifier_named
        from edgesdk_export.flywheel.recipe import FlywheelRecipe
        from edgesdk_export.flywheel.regression import RegressionSet
        from edgesdk_export.flywheel.turn import FlywheelJob, turn
    recipe = FlywheelRecipe()
    if recipe_file is not None:
        recipe = read_training_recipe(recipe_file, FlywheelRecipe)
    job = FlywheelJob(
        folder,
        journals,
        None if checkpoint is None else find_checkpoint(Store(), checkpoint)[0],
        bundle,
        recipe,
        RegressionSet(
            tuple(path for path in regression_files if path.suffix != ".jsonl"),
            tuple(path for path in regression_files if path.suffix == ".jsonl"),
            tasks,
            include,
        ),
        clouds_of(cloud, cloud_model, cloud_key_env),
        labelled,
        same_as_expected if verifier is None else verifier_named(verifier),
    )
    try:
        with stage_progress_bar() as progress:
            result = turn(job, progress)
    except KeyboardInterrupt:
        message_console().print("The same command goes on where this one was.")
        raise
    _report(result, as_json=as_json)


@command.command("history")
@_FOLDER
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def history_command(folder: Path, as_json: bool) -> None:
    """Show what became of each turn, and which model is current."""
    opened = _opened(folder)
    current = opened.current
    if as_json:
        print_json({"current": current.to_json(), "history": opened.history()})
        return
    out = result_console()
    for entry in opened.history():
        out.print(f"{entry['at']}  turn {entry['turn']}  {entry['event']}: {entry['words']}")
    _print_current(current.to_json())


@command.command("rollback")
@_FOLDER
def rollback_command(folder: Path) -> None:
    """Make the model before the current one current again."""
    wheel = _opened(folder)
    with wheel.locked():
        before = wheel.roll_back()
    _print_current(before.to_json())


def _opened(folder: Path) -> FlywheelFolder:
    from edgesdk_export.flywheel.state import FlywheelFolder

    return FlywheelFolder(folder)


def _report(result: TurnResult, *, as_json: bool) -> None:
    if as_json:
        print_json(result.to_json())
        return
    out, verdict = result_console(), result.verdict
    out.print(f"turn {result.turn}: {'promoted' if verdict.better else 'refused'}")
    out.print(f"  {verdict.reason}")
    for figure in verdict.regressions:
        out.print(f"  {figure.name}: {figure.old:.4g} before, {figure.new:.4g} after")
    if result.recalibration is not None:
        out.print(f"  {result.recalibration.words}")
    _print_current(result.current.to_json())


def _print_current(current: dict[str, object]) -> None:
    out = result_console()
    out.print(f"current: the model of turn {current['turn']}")
    for name in ("bundle", "adapter", "profile"):
        if current[name] is not None:
            out.print(f"  {name:<8} {current[name]}")
