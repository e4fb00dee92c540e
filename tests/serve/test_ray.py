"""Replicas by Ray Serve, where ray[serve] is installed: `serve run` on a Ray of this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from serving import read_events

pytest.importorskip(
    "ray.serve", reason="pip install 'ray[serve]' tries the example for Ray", exc_type=ImportError
)

ROOT = Path(__file__).parents[2]


def test_two_replicas_answer_and_stream(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {"import_path": "deploy.ray.app:build", "args": {"model": "tiny", "replicas": "2"}},
        ],
    }
    file = tmp_path / "ray.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-c", "from ray.serve.scripts import cli; cli()", "run", "--app-dir", ROOT, file],
        stdout=log, stderr=log, cwd=ROOT, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0",
             "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120"},  # a busy machine
    )  # fmt: skip
    try:
        until_ready(f"http://127.0.0.1:{port}/ready", process, tmp_path / "log")
        for stream in (False, True):
            for _ in range(4):
                said = answer(port, stream)
                assert "Ask me about" in said
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            process.kill()


def until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 500
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)


def answer(port: int, stream: bool) -> str:
    """What is said to a greeting; streamed, in several events."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "stream": stream}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        data = response.read()
    if not stream:
        return json.loads(data)["choices"][0]["message"]["content"]
    return "".join(event["choices"][0]["delta"].get("content", "") for event in read_events(data))
