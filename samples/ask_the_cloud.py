"""Answer on the device, and ask a cloud where the device is not sure; private values stay here.

Usage: python ask_the_cloud.py MODEL BASE_URL CLOUD_MODEL, with the key in the variable API_KEY.
"""

from __future__ import annotations

import os
import sys

import edgesdk


def main(name: str, base_url: str, cloud_model: str) -> None:
    """Show what would leave the device, then ask."""
    cloud = edgesdk.Cloud(base_url, cloud_model, os.environ.get("API_KEY"))
    policy = edgesdk.Policy("redact", kinds={"CARD": "local_only"})
    with (
        edgesdk.load(name) as model,
        edgesdk.HybridClient(model, cloud=cloud, policy=policy) as client,
        client.chat() as chat,
    ):
        question = "Draft a polite reminder to ann@example.com about the invoice of May."
        preview = chat.preview(question)
        print(f"{', '.join(preview.endpoints)} would get, by the rule {preview.upload!r}:")
        print(f"  {preview.redacted[-1]['content']}")
        reply = chat.respond(question, max_tokens=120)
        print(reply.text)
        print(f"[{reply.receipt.line()}]")
        card = chat.preview("My card is 4111 1111 1111 1111.")
        print(f"With a card number the rule is {card.upload!r}, for: {card.reason}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
