"""A headless ComfyUI server to run workflows on, and a small client for it. Standard library only.

with Server() as server:
    result = server.client.run(prompt)          # prompt: API format, node id -> {class_type, inputs}
    images = server.client.images(result)   # PNG bytes, in the order of the nodes' ids
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .places import HERE, python_environment
from .signals import die_with_parent

LOCALHOST = "127.0.0.1"
START_SECONDS = 300.0  # a cold start on a busy two-core machine stays far below this
START_TRIES = 3


class ServerError(RuntimeError):
    """The server did not start, died, or does not answer."""


class PromptError(RuntimeError):
    """The server refused a prompt, or a node failed while it ran. `details` is what the server sent."""

    def __init__(self, message: str, details: Any = None) -> None:
        super().__init__(message)
        self.details = details


def port_is_free(port: int) -> bool:
    """Whether a server can listen on this port of the local machine now."""
    with socket.socket() as probe:
        if os.name != "nt":  # as ComfyUI's own socket does: a connection in its last minute does not block the port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOCALHOST, port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        return probe.getsockname()[1]


def server_command(comfyui: Path, base: Path, port: int, *, python: Path | str, gpu: bool = False) -> list[str]:
    """The command line of a ComfyUI that keeps models, images and its database in `base`, not in its own tree."""
    command = [str(python), str(comfyui / "main.py"), "--listen", LOCALHOST, "--port", str(port)]
    command += ["--base-directory", str(base)]
    command += ["--database-url", f"sqlite:///{(base / 'user' / 'comfyui.db').as_posix()}"]
    command += ["--disable-api-nodes", "--disable-auto-launch", "--preview-method", "none"]
    return command if gpu else [*command, "--cpu", "--use-pytorch-cross-attention"]


@dataclass
class Result:
    """What a prompt produced. `outputs` maps a node id to what the node shows, e.g. `{"images": [...]}`."""

    prompt_id: str
    outputs: dict[str, dict[str, Any]]
    cached: list[str]  # ids of the nodes that were not run again
    seconds: float


class Client:
    """Talks to a running ComfyUI over HTTP. `server`, when given, lets a crash be told from a long run."""

    def __init__(self, url: str, server: Server | None = None) -> None:
        self.url = url.rstrip("/")
        self.server = server

    def request(self, path: str, body: Any = None, *, timeout: float = 60.0) -> bytes:
        """GET `path`, or POST `body` as JSON to it. Raises `ServerError` when there is no answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if data is not None else {}
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            text = error.read()
            with contextlib.suppress(ValueError):
                details = json.loads(text)
                raise PromptError(_refusal(details), details) from None
            raise ServerError(f"{path}: the server answered {error.code} {error.reason}.") from None
        except OSError as error:
            if self.server is not None:
                self.server.check_alive()
            raise ServerError(f"{self.url}{path} does not answer: {error}.") from error

    def json(self, path: str, body: Any = None) -> Any:
        """`request`, decoded."""
        answer = self.request(path, body)
        return json.loads(answer) if answer else None

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """The schema of every node the server knows, or of one."""
        return self.json("/object_info" if node is None else f"/object_info/{urllib.parse.quote(node)}")

    def queue(self, prompt: Mapping[str, Any], extra_data: Mapping[str, Any] | None = None) -> str:
        """Queues a prompt in API format; returns its id. Raises `PromptError` when the server refuses it."""
        # without a client's name the outputs of cached nodes are left out of the history
        body = {"prompt": prompt, "client_id": "devtools", "extra_data": dict(extra_data or {})}
        return self.json("/prompt", body)["prompt_id"]

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """What the server remembers of a finished prompt; None while it waits or runs."""
        return self.json(f"/history/{prompt_id}").get(prompt_id)

    def wait(self, prompt_id: str, timeout: float = 1800.0) -> Result:
        """Waits for a queued prompt. Raises `PromptError` when a node fails or the run is cancelled."""
        deadline = time.monotonic() + timeout
        pause = 0.02
        while (entry := self.history(prompt_id)) is None:
            if time.monotonic() > deadline:
                raise PromptError(f"Prompt {prompt_id} was not done after {timeout:.0f} seconds.")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)
        messages: dict[str, Any] = dict(entry["status"]["messages"])
        if entry["status"]["status_str"] != "success":
            raise PromptError(_failure(messages), messages)
        started = messages["execution_start"]["timestamp"]
        return Result(
            prompt_id=prompt_id,
            outputs=entry["outputs"],
            cached=list(messages.get("execution_cached", {}).get("nodes", [])),
            seconds=(messages["execution_success"]["timestamp"] - started) / 1000,
        )

    def run(self, prompt: Mapping[str, Any], timeout: float = 1800.0) -> Result:
        """Queues a prompt and waits for it."""
        return self.wait(self.queue(prompt), timeout)

    def images(self, result: Result, node: str | None = None) -> list[bytes]:
        """The image files a prompt wrote, as bytes; of all nodes in the order of their ids, or of one."""
        nodes = sorted(result.outputs, key=lambda name: (len(name), name)) if node is None else [node]
        files = [image for name in nodes for image in result.outputs.get(name, {}).get("images", [])]
        return [self.request(f"/view?{urllib.parse.urlencode(image)}") for image in files]

    def interrupt(self) -> None:
        """Cancels the prompt that runs now."""
        self.request("/interrupt", {})

    def clear(self) -> None:
        """Takes all prompts out of the queue and cancels the one that runs."""
        self.request("/queue", {"clear": True})
        self.interrupt()


def _refusal(details: Any) -> str:
    """A refused prompt in words: ComfyUI's answer to a prompt that does not validate."""
    error = details.get("error", details) if isinstance(details, dict) else details
    if not isinstance(error, dict):
        return f"The server refused the request: {error}"
    lines = [f"The server refused the prompt: {error.get('message', error)} {error.get('details', '')}".rstrip()]
    for node_id, node in (details.get("node_errors") or {}).items():
        for problem in node["errors"]:
            lines.append(f"  node {node_id} ({node['class_type']}): {problem['message']}: {problem['details']}")
    return "\n".join(lines)


def _failure(messages: Mapping[str, Any]) -> str:
    """A failed run in words: ComfyUI's status messages."""
    if "execution_error" not in messages:
        return "The run was cancelled." if "execution_interrupted" in messages else f"The run failed: {messages}"
    error = messages["execution_error"]
    where = f"node {error['node_id']} ({error['node_type']})"
    trace = "".join(error.get("traceback", [])).rstrip()
    return f"{where} failed with {error['exception_type']}: {error['exception_message'].strip()}\n{trace}"


@dataclass
class Server:
    """A ComfyUI server with this pack, on the CPU unless `gpu`. Use it as a context, or call `start` and `stop`.

    Without `port` a free one is taken. `base` and `comfyui` default to what set-up made. The output goes to `log`
    (default: `server.log` in the base directory). `extra` are further command line arguments of ComfyUI.
    """

    port: int | None = None
    base: Path = HERE.base
    comfyui: Path = field(default_factory=HERE.comfyui)
    python: Path | str = sys.executable
    log: Path | None = None
    extra: Sequence[str] = ()
    gpu: bool = False
    process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://{LOCALHOST}:{self.port}"

    @property
    def client(self) -> Client:
        return Client(self.url, self)

    @property
    def log_path(self) -> Path:
        return self.log or self.base / "server.log"

    def start(self) -> None:
        """Starts the server and returns once it answers. Raises `ServerError` with the end of its log when it dies."""
        if self.process is not None:
            raise ServerError("The server was started already.")
        if not (self.comfyui / "main.py").is_file():
            raise ServerError(f"{self.comfyui} holds no ComfyUI. Run `python dev.py test` once: it sets one up.")
        if self.port is not None:
            self._start()
            return
        for attempt in range(1, START_TRIES + 1):
            self.port = free_port()
            try:
                self._start()
                return
            except ServerError:
                # Another program may have taken the free port before ComfyUI did.
                if port_is_free(self.port) or attempt == START_TRIES:
                    raise

    def _start(self) -> None:
        assert self.port is not None
        if not port_is_free(self.port):
            raise ServerError(f"Port {self.port} is in use. Stop the program that uses it, or choose another (--port).")
        # ComfyUI asks for these; models and input it makes itself
        for name in ("custom_nodes", "user"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        command = server_command(self.comfyui, self.base, self.port, python=self.python, gpu=self.gpu)
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *self.extra],
                cwd=self.comfyui,
                env=python_environment(self.comfyui),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent(),
                start_new_session=True,  # Ctrl-C reaches us alone; we then stop the server in order
            )
        try:
            self._wait_until_up()
        except BaseException:
            self.stop()
            raise

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            self.check_alive()
            try:
                with urllib.request.urlopen(f"{self.url}/system_stats", timeout=5) as answer:
                    answer.read()
                    return
            except OSError:
                if time.monotonic() > deadline:
                    told = f"ComfyUI did not answer after {START_SECONDS:.0f} s. The end of {self.log_path}:"
                    raise ServerError(f"{told}\n{self.log_tail()}") from None
                time.sleep(0.1)

    def check_alive(self) -> None:
        """Raises `ServerError` with the end of the log when the server has ended by itself."""
        if self.process is None:
            raise ServerError("The server does not run.")
        if (code := self.process.poll()) is not None:
            raise ServerError(f"ComfyUI ended with exit code {code}. The end of {self.log_path}:\n{self.log_tail()}")

    def log_tail(self, lines: int = 40) -> str:
        """The last lines that the server wrote."""
        try:
            return "\n".join(self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def stop(self) -> None:
        """Stops the server; harmless when it does not run."""
        process, self.process = self.process, None
        if process is None:
            return
        if process.poll() is None:
            # ComfyUI cleans up after an interrupt; Windows has no interrupt for a process without a console
            process.terminate() if os.name == "nt" else process.send_signal(signal.SIGINT)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
