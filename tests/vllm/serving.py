"""`vllm serve` in a process of its own on loopback, which can be killed and started again."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2

SECONDS = 600  # that a start may take


class VllmServer:
    """Serves the model in this folder; `start` returns at once, `ready` when it answers."""

    def __init__(self, model: Path, log: Path, *, max_model_len: int = 256, key: str | None = None):
        self.model, self.log, self.max_model_len, self.key = model, log, max_model_len, key
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        words = [
            *("--model", str(self.model), "--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32"),
            *("--enforce-eager", "--max-model-len", str(self.max_model_len), "--max-num-seqs", "32"),
            *("--kv-cache-memory-bytes", str(64 << 20)),
        ]
        environment = os.environ | {"VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
        environment |= {} if self.key is None else {"VLLM_API_KEY": self.key}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words],
                env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def ready(self) -> None:
        assert self.process is not None
        for _ in range(SECONDS * 4):
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                if httpx2.get(f"{self.url}/health", timeout=1).status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.25)
        raise AssertionError(f"not ready after {SECONDS} s: {self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """It and its engine, at once."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
