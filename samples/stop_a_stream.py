"""Stream an answer, and stop it from elsewhere: a button, a timer, a client that hung up."""

from __future__ import annotations

import sys
import threading

import edgesdk


def main(name: str, seconds: float = 1.0) -> None:
    """Let an answer run for some seconds at most."""
    with edgesdk.load(name) as model, model.stream("Tell me a long story.") as answer:
        # `cancel` may be called from any thread; the stream then ends with what is there.
        timer = threading.Timer(seconds, answer.cancel)
        timer.start()
        for piece in answer:
            print(piece, end="", flush=True)
        timer.cancel()
        print(f"\n[{answer.reply.finish_reason} after {len(answer.reply.tokens)} tokens]")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct")
