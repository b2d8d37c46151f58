"""`edgesdk eval`: run tasks of lm-evaluation-harness on a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from edgesdk.cli.output import print_json, result_console
from edgesdk.errors import requires_extra

_EPILOG = """\b
MODEL is a name in the store, a bundle's folder, or a .gguf. TASKS are the names of tasks of
EleutherAI's lm-evaluation-harness; --include adds a folder with tasks of your own.

\b
Examples:
  edgesdk eval smollm2-135m-instruct arc_easy --limit 100
  edgesdk eval ./my-bundle my_task --include ./tasks --json

All of the harness's own options, with the same model:
  python -m edgesdk.evaluation run --model edgesdk --model_args bundle=NAME --tasks arc_easy
"""


@click.command("eval", epilog=_EPILOG)
@click.argument("model")
@click.argument("tasks", nargs=-1, required=True)
@click.option(
    "--include",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A folder with tasks of your own.",
)
@click.option("--num-fewshot", type=click.IntRange(min=0), help="Examples in each prompt.")
@click.option("--limit", type=click.IntRange(min=1), help="Questions of each task (default: all).")
@click.option("--chat", is_flag=True, help="Ask through the model's chat template.")
@click.option("--device", default="auto", show_default=True, help="Where to run it.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def command(
    model: str,
    tasks: tuple[str, ...],
    include: Path | None,
    num_fewshot: int | None,
    limit: int | None,
    chat: bool,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Run TASKS of lm-evaluation-harness on MODEL."""
    # Read when the harness is imported: it would draw a bar for each step.
    os.environ.setdefault("TQDM_DISABLE", "1")
    with requires_extra("eval", needed_for="Evaluating"):
        from edgesdk.evaluation import evaluate
    results = evaluate(
        model,
        tasks,
        include_path=include,
        num_fewshot=num_fewshot,
        limit=limit,
        apply_chat_template=chat,
        device=device,
        threads=threads,
    )
    if as_json:
        print_json(results)
    else:
        result_console().print(_table(results))


def _table(results: dict[str, Any]) -> Table:
    """Values of each task, with their standard errors."""
    table = Table("task", "metric", "value", "standard error")
    for task, values in results.items():
        for name, value in values.items():
            metric, _, filtered = name.partition(",")
            if not isinstance(value, float) or metric.endswith("_stderr"):
                continue
            error = values.get(f"{metric}_stderr,{filtered}")
            shown = f"{error:.4f}" if isinstance(error, float) else ""
            table.add_row(task, metric, f"{value:.4f}", shown)
    return table
