"""Show the devices of this machine, run a model on one, and say why it is that one."""

from __future__ import annotations

import sys

import edgesdk


def main(name: str) -> None:
    """List devices, ask for an NPU, and take what there is."""
    for device in edgesdk.devices():
        print(f"{device.name:<14} {device.state:<14} {device.advice or ''}")
    try:
        # A kind gives hardware of it, or raises with what is missing: never silently the CPU.
        model = edgesdk.load(name, device="npu")
    except edgesdk.EdgeError as error:
        print(f"No NPU: {error}")
        model = edgesdk.load(name, device="auto")
    with model:
        print(f"It runs on {model.device}")
        print(model.respond("Name one river.", max_tokens=20).text)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct")
