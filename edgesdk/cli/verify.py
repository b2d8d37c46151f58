"""`edgesdk verify`: check the files of models against their hashes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from edgesdk.bundle.opening import is_bundle, open_bundle, verify_bundle
from edgesdk.cli.output import StoreProgressBar, print_json, result_console, store_progress_bar
from edgesdk.errors import BundleError, CheckpointError
from edgesdk.store import Store, StoreEntry

_EPILOG = """\b
Examples:
  edgesdk verify
  edgesdk verify smollm2-135m-instruct
  edgesdk verify ./my-bundle --json
"""


@dataclass(frozen=True)
class VerifyResult:
    """The result for one model; without a problem, every file has its hash."""

    name: str
    kind: str
    problem: str | None


@click.command("verify", epilog=_EPILOG)
@click.argument("names", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print the result of each as JSON.")
def command(names: tuple[str, ...], as_json: bool) -> int:
    """Check the files of models against their hashes.

    NAMES are names in the store or folders of bundles. Without NAMES, every model is checked.
    """
    store = Store()
    folders = [Path(name) for name in names if is_bundle(Path(name))]
    wanted = [name for name in names if Path(name) not in folders]
    for name in wanted:
        store.get(name)
    entries = [entry for entry in store.list() if not names or entry.name in wanted]
    with store_progress_bar() as progress:
        outcomes = [_verify_folder(folder, progress) for folder in folders]
        outcomes += [_verify_entry(store, entry, progress) for entry in entries]
    if as_json:
        print_json([asdict(outcome) for outcome in outcomes])
    else:
        for outcome in outcomes:
            verdict = outcome.problem or "every file has its hash"
            result_console().print(f"{outcome.name} ({outcome.kind}): {verdict}")
    return 0 if all(outcome.problem is None for outcome in outcomes) else 1


def _verify_entry(store: Store, entry: StoreEntry, progress: StoreProgressBar) -> VerifyResult:
    def check() -> None:
        store.verify(entry.name, entry.kind, progress=progress)

    return _verify(entry.name, entry.kind, check)


def _verify_folder(folder: Path, progress: StoreProgressBar) -> VerifyResult:
    def check() -> None:
        bundle = open_bundle(folder)
        progress.start(f"checking {folder}", bundle.size)
        verify_bundle(bundle, progress=progress.advance)

    return _verify(str(folder), "bundle", check)


def _verify(name: str, kind: str, check: Callable[[], None]) -> VerifyResult:
    try:
        check()
    except (BundleError, CheckpointError) as error:
        return VerifyResult(name, kind, str(error))
    return VerifyResult(name, kind, None)
