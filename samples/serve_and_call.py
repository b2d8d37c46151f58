"""Serve a model, and call it with OpenAI's client: pip install 'edgesdk[server]' openai."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import httpx
from openai import OpenAI

_PATIENCE = 120


def main(name: str) -> None:
    """Start a server, ask it one question, and end it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "edgesdk", "serve", name, "--port", str(port)]
    server = subprocess.Popen(command)
    try:
        _wait_for(f"http://127.0.0.1:{port}/v1/models", server)
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        model = client.models.list().data[0].id
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Name three rivers."}],
            max_tokens=60,
            stream=True,
        )
        for chunk in stream:
            if chunk.choices:
                print(chunk.choices[0].delta.content or "", end="", flush=True)
        print()
    finally:
        server.terminate()
        server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end and server.poll() is None:
        try:
            httpx.get(url).raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.2)
        else:
            return
    raise SystemExit("The server did not start.")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct")
