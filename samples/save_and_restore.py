"""Save a conversation with its KV cache, and go on after a restart without computing it again."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import edgesdk

NOTES = "The garden has apples, pears, plums and cherries. The shed has a rake and a spade. " * 8


def main(name: str) -> None:
    """Talk, save, load anew, and go on."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "garden.chat"
        with edgesdk.load(name) as model, model.chat(system=NOTES) as chat:
            first = chat.respond("What grows in the garden?", max_tokens=40)
            print(first.text)
            branch = chat.fork()  # what is in the KV cache is not computed again
            print(branch.respond("And what is in the shed?", max_tokens=40).text)
            branch.close()
            chat.save(saved)
        with edgesdk.load(name) as model, model.restore(saved) as chat:
            reply = chat.respond("What is in the shed?", max_tokens=40)
            print(reply.text)
            held, asked = reply.receipt.cached_tokens, reply.receipt.prompt_tokens
            print(f"[{held} of {asked} tokens came from the file]")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct")
