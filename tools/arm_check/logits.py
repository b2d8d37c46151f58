"""Write the logits of a bundle into a file, or compare two such files.

logits.py BUNDLE DEVICE FILE
logits.py --compare FILE FILE
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import numpy as np

PREFILL, SINGLE = 80, 16
TEXT = (
    "The river rises in the hills, runs past two mills and a village, and meets the sea at a"
    " harbour where boats bring salt, cloth and iron. In spring the meadows beside it are under"
    " water, and the children go to school by boat. Nobody has ever counted the bridges; the oldest"
    " one was built of stone by monks, who asked a coin of everyone who crossed it with a cart."
)


def write(bundle: str, device: str, path: str) -> None:
    """Of a prompt, and of a few tokens after it one by one."""
    from tokenizers import Tokenizer

    from edgesdk.bundle.opening import open_bundle
    from edgesdk.engines import discovery
    from edgesdk.engines.registry import open_engine

    # Probes start the interpreter again, which takes its time under emulation.
    discovery._TIMEOUT_SECONDS = 600.0
    opened = open_bundle(Path(bundle))
    engine = open_engine(opened, device, threads=1)
    tokenizer = Tokenizer.from_file(str(opened.file(opened.manifest.tokenizer.file)))
    ids = tokenizer.encode(TEXT).ids[: PREFILL + SINGLE]
    state = engine.new_state()
    rows = [state.extend(ids[:PREFILL], logits="all").copy()]
    rows += [state.extend([token]).copy() for token in ids[PREFILL:]]
    np.save(path, np.concatenate(rows))
    sys.stdout.write(f"  {engine.info.name} on {platform.machine()}: {len(ids)} tokens\n")


def compare(first: str, second: str) -> bool:
    """Print how far two files are apart; whether the same tokens are the likeliest."""
    one, other = np.load(first), np.load(second)
    same = one.argmax(axis=1) == other.argmax(axis=1)
    difference = np.abs(one - other).max()
    sys.stdout.write(f"  top-1 {same.mean():.1%}, largest difference {difference:.3g}\n")
    return bool(same.all())


if __name__ == "__main__":
    if sys.argv[1] == "--compare":
        sys.exit(0 if compare(*sys.argv[2:]) else 1)
    write(*sys.argv[1:])
