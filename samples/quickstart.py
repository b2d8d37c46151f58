"""Answer, stream and chat with a model from the store: `edgesdk pull` and `export` it first."""

from __future__ import annotations

import sys

import edgesdk


def main(name: str) -> None:
    """Ask one question, then have a short conversation."""
    with edgesdk.load(name) as model:
        print(model.respond("Name three rivers.", max_tokens=60).text)
        with model.chat(system="You are terse.") as chat:
            for question in ("What is DNS?", "Which port does it use?"):
                print(f"\n> {question}")
                with chat.stream(question, max_tokens=80) as answer:
                    for piece in answer:
                        print(piece, end="", flush=True)
                print(f"\n[{answer.reply.receipt.line()}]")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct")
