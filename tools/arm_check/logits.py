"""Write the logits of a bundle into a file, or compare two such files.

logits.py BUNDLE DEVICE FILE
logits.py --compare FILE FILE
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import numpy as np

PREFILL, SINGLE = 40, 8


def write(bundle: str, device: str, path: str) -> None:
    """Of a prompt, and of a few tokens after it one by one."""
    from edgesdk.bundle.opening import open_bundle
    from edgesdk.engines.registry import open_engine

    engine = open_engine(open_bundle(Path(bundle)), device, threads=1)
    vocab = engine.info.vocab_size
    ids = [(7 * i * i + 3 * i + 5) % vocab for i in range(PREFILL + SINGLE)]
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
