"""The commands behind dev.py. Standard library only: everything else runs in the environment that set-up makes."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import webbrowser
from collections.abc import Sequence

from .errors import SetupError
from .places import HERE, python_environment
from .server import Server, ServerError
from .setup import say, set_up
from .signals import end_in_order
from .weights import check_weights

DEFAULT_PORT = 8188  # ComfyUI's own


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns the exit code. What fails is said in plain words, without a traceback."""
    end_in_order()
    parser = argparse.ArgumentParser(prog="python dev.py", description="Tools for developing ComfyUI-Diversity.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    demo = commands.add_parser("demo", help="make images with every shipped workflow and measure their diversity")
    demo.set_defaults(call=run_demo)
    test = commands.add_parser(
        "test", help="lint, types and all tests; --fast: lint and the fast tests; other arguments go to pytest alone"
    )
    test.set_defaults(call=run_tests)
    bench = commands.add_parser(
        "bench", help="rivals and methods, good images against diversity: ten minutes; --full: hours, resumable"
    )
    bench.set_defaults(call=run_bench)
    train = commands.add_parser("train", help="train the demo models again")
    train.set_defaults(call=run_training)
    serve = commands.add_parser("serve", help="open a ComfyUI with the pack and the demo world")
    serve.add_argument("--port", type=_port, default=DEFAULT_PORT, help="default: %(default)s")
    serve.add_argument("--gpu", action="store_true", help="let ComfyUI use the GPU; the demo world needs none")
    serve.add_argument("--open", action="store_true", help="open it in the browser")
    serve.set_defaults(call=run_server)

    # `demo --help`, `bench --help`, `test --help` and `train --help` are answered by the programs that know the options
    own, passed_on = list(arguments), []
    if own and own[0] in ("demo", "bench", "test", "train"):
        own, passed_on = own[:1], own[1:]
    options, unknown = parser.parse_known_args(own)
    try:
        return options.call(options, [*passed_on, *unknown])
    except (SetupError, ServerError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except OSError as error:  # something below .dev is gone, or belongs to another user
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"\n{what}. Delete the folder {HERE.work}, then run the same command again.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again to go on.", file=sys.stderr)
        return 130


def run_demo(_: argparse.Namespace, arguments: Sequence[str]) -> int:
    """All shipped workflows on the demo world."""
    check_weights(HERE.weights)
    set_up(HERE)
    return _in_environment("python", "-m", "benchmarks.demo", *arguments)


def run_bench(_: argparse.Namespace, arguments: Sequence[str]) -> int:
    """The frontier of all rivals and methods."""
    check_weights(HERE.weights)
    set_up(HERE)
    return _in_environment("python", "-m", "benchmarks.bench", *arguments)


def run_tests(_: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Lint and tests, of which one checks the types; stops at the first that fails. The last lines are pytest's own.

    `--fast`: lint, the unit tests, and of the others those that are marked so.
    """
    set_up(HERE)
    programs = [["pytest", *arguments]]
    if not arguments:
        programs = [["ruff", "check"], ["pytest", *_side_by_side()]]
    elif "--fast" in arguments:
        chosen = [argument for argument in arguments if argument != "--fast"]
        programs = [["ruff", "check"], ["pytest", *_side_by_side(), "-m", "fast", *chosen]]
    for program in programs:
        say(f"\n$ {' '.join(program)}")
        if code := _in_environment(*program):
            return code
    return 0


def _side_by_side() -> list[str]:
    """pytest's arguments for three processes, each with a ComfyUI server and files of its own, if there are two cores:
    while one waits for a browser or a server, the others compute."""
    return ["-n", "3", "--dist", "loadfile", "--no-loadscope-reorder"] if (os.cpu_count() or 1) > 1 else []


def run_training(_: argparse.Namespace, arguments: Sequence[str]) -> int:
    """The demo's training scripts."""
    comfyui = set_up(HERE)
    return _in_environment("python", "-m", "demo.training", *arguments, COMFYUI_PATH=str(comfyui))


def run_server(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """A server in the foreground, until Ctrl-C."""
    check_weights(HERE.weights)
    comfyui = set_up(HERE)
    server = Server(port=options.port, comfyui=comfyui, python=HERE.python, gpu=options.gpu, extra=arguments)
    say("Starting ComfyUI ...")
    with server:
        try:  # from the moment on that it says so
            say(f"ComfyUI is ready: {server.url}  (log: {server.log_path}; Ctrl-C stops it)")
            say(f"The workflows of the pack are under Workflow > Browse Templates > {HERE.root.name}.")
            if options.open:
                webbrowser.open(server.url)
            while True:
                server.check_alive()
                time.sleep(0.5)
        except KeyboardInterrupt:
            say("\nStopping ComfyUI.")
    return 0


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is no port; it must be 1 to 65535")
    return port


def _in_environment(program: str, *arguments: str, **variables: str) -> int:
    """Runs a program of the virtual environment in the pack's folder; returns its exit code."""
    command = [str(HERE.program(program)), *arguments]
    process = subprocess.Popen(command, cwd=HERE.root, env={**python_environment(HERE.comfyui()), **variables})
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the program got it, too, and ends in its own way
        except SystemExit:  # we alone were asked to end
            process.terminate()
            process.wait()
            raise
