"""Extract data from text: the answer is held to a schema while it is written."""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import BaseModel

import edgesdk

MAIL = "Hi, please send 12 boxes of apples to Oslo. It is urgent! Ann"


class Order(BaseModel):
    """What somebody orders."""

    item: str
    quantity: int
    priority: Literal["normal", "urgent"]


def main(name: str) -> None:
    """Make an order of a mail."""
    with edgesdk.load(name) as model:
        reply = model.respond(f"Extract the order from this mail:\n{MAIL}", schema=Order)
        order = reply.parsed
        assert isinstance(order, Order), "an answer that does not fit raises StructureError"
        print(order.model_dump_json(indent=2))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct")
