"""Runs commands as forks of one process that has imported torch, nnU-Net and this package, but computed nothing.

Importing them takes longer than most of what the commands of the tests do. Each command still is a process of its own
with its own arguments, folders and environment, and runs the script that was installed for it.

`run` serves the tests of units, those in `tests/end_to_end` have a `Workspace`.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from multiprocessing import context, forkserver, util
from pathlib import Path
from typing import IO, NoReturn

READ_WHEN_USED = {
    "EXPERIMENT_SEED", "NO_PROXY", "no_proxy", "nnUNet_extTrainer", "nnUNet_n_proc_DA", "nnUNet_preprocessed",
    "nnUNet_raw", "nnUNet_results",
}  # fmt: skip
"""Variables that may differ between commands, because no module reads them when it is imported"""
GROUPS_READ_WHEN_USED = ("AUTOSAM2_", "HF_", "PYTEST_")
"""What the names of more of them begin with; of the model hub's package, see `MODEL_HUB`"""
MODEL_HUB = "huggingface_hub"
"""Reads HF_* when it is imported, which each command therefore does itself, though other modules have done it here."""
MODULES = (
    "dynamic_network_architectures.architectures.primus",
    "nnunetv2.evaluation.evaluate_predictions",
    "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints",
    "nnunetv2.inference.predict_from_raw_data",
    "nnunetv2.run.run_training",
    "nnunet_autosam2.architectures.sam2.branch",
    "nnunet_autosam2.cli.configure",
    "nnunet_autosam2.evaluation.scoring",
    "nnunet_autosam2.show.loading",
    "nnunet_autosam2.trainers",
)


@cache
def shared() -> ForkServer:
    """The one of all tests of units, started when the first of them needs it; it ends with this process."""
    server = ForkServer(dict(os.environ))
    atexit.register(server.close)
    return server


def run(
    *command: str | Path,
    variables: dict[str, str] | None = None,
    folder: Path | None = None,
    afresh: bool = False,
    timeout: float = 120,
    server: ForkServer | None = None,
) -> subprocess.CompletedProcess[str]:
    """A command with its standard output and error; `variables` are all of its environment.

    Not `afresh` it is forked where that makes no difference, which saves what it would import. Without a `server` of
    its own it is a fork of the shared one.
    """
    words = [str(part) for part in command]
    variables = dict(os.environ) if variables is None else variables
    path = os.pathsep.join([str(Path(sys.executable).parent), variables.get("PATH", os.defpath)])
    words[0] = shutil.which(words[0], path=path) or words[0]
    folder = folder or Path.cwd()
    server = server or (None if afresh else shared())
    if server is None or not server.serves(words[0], variables):
        interpreter = [sys.executable] if words[0].endswith(".py") else []
        return subprocess.run(
            [*interpreter, *words], cwd=folder, env=variables, capture_output=True, text=True, timeout=timeout
        )
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        code = server.run(words, folder, variables, output, errors, timeout)
        for file in (output, errors):
            file.seek(0)
        return subprocess.CompletedProcess(words, code, output.read(), errors.read())


class ForkServer:
    """The process that forks, as the tests see it."""

    def __init__(self, variables: dict[str, str], modules: Sequence[str] = MODULES) -> None:
        self.variables = _fixed(variables)
        self._requests, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno()), *modules],
            env=variables,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()

    def serves(self, command: str, variables: dict[str, str]) -> bool:
        """Whether it is a script of this environment, or a file in Python, that would import the same way."""
        script = Path(shutil.which(command, path=variables.get("PATH")) or command)
        ours = script.parent == Path(sys.executable).parent and not script.name.startswith("python")
        return (ours or script.suffix == ".py") and _fixed(variables) == self.variables

    def run(
        self,
        command: list[str],
        folder: Path,
        variables: dict[str, str],
        output: IO[str],
        errors: IO[str],
        timeout: float,
    ) -> int:
        """Exit code. Standard output and error go to the files `output` and `errors`, which may be one."""
        request = json.dumps({"command": command, "folder": str(folder), "variables": variables}) + "\n"
        self._requests.settimeout(timeout)
        socket.send_fds(self._requests, [b"0"], [output.fileno(), errors.fileno()])
        self._requests.sendall(request.encode())
        answer = self._requests.makefile().readline()
        assert answer, "the fork server has ended"
        return int(answer)

    def close(self) -> None:
        self._requests.close()
        os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait()


def _fixed(variables: dict[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in variables.items()
        if name not in READ_WHEN_USED and not name.startswith(GROUPS_READ_WHEN_USED)
    }


def serve(requests: socket.socket) -> None:
    """Returns in each fork, with the command's script to be run, and ends when nobody asks any more."""
    while (received := socket.recv_fds(requests, 1, 2))[0]:
        streams = received[1]
        request = json.loads(requests.makefile().readline())
        if pid := os.fork():
            for stream in streams:
                os.close(stream)
            _, status = os.waitpid(pid, 0)
            requests.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            continue
        requests.close()
        _become(**request, streams=streams)
        return
    os._exit(0)


def _become(command: list[str], folder: str, variables: dict[str, str], streams: list[int]) -> None:
    import numpy as np

    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    for ours, theirs in zip((sys.stdout, sys.stderr), streams, strict=True):
        os.dup2(theirs, ours.fileno())
        os.close(theirs)
    multiprocessing.cpu_count = lambda: 1  # by which nnU-Net chooses torch's threads: other tests run beside it
    np.random.seed()  # seeded when it was imported, as every fork would be
    sys.argv[:] = [shutil.which(command[0]) or command[0], *command[1:]]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    _fork_what_is_spawned()


def _fork_what_is_spawned() -> None:
    """Processes that multiprocessing spawns come from a fork of this process as it is now, and import nothing again."""
    address = os.path.join(util.get_temp_dir(), "fork_server")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    alive, ours = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(ours)
        try:
            forkserver.main(listener.detach(), alive, [])
        finally:
            os._exit(0)
    listener.close()
    os.close(alive)
    server, contexts = forkserver.__dict__["_forkserver"], context.__dict__["_concrete_contexts"]
    server._forkserver_address, server._forkserver_alive_fd, server._forkserver_pid = address, ours, pid
    contexts["spawn"] = contexts["forkserver"]
    owner = os.getpid()

    @atexit.register
    def end() -> None:
        if os.getpid() == owner:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _run_script() -> NoReturn:
    """As Python does, without taking all modules apart in the end: each fork would copy them for that, for seconds."""
    code: object = None
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    for module in sys.argv[2:]:
        importlib.import_module(module)
    for module in [name for name in sys.modules if name.split(".")[0] == MODEL_HUB]:
        del sys.modules[module]
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page of what was imported
    serve(socket.socket(fileno=int(sys.argv[1])))
    _run_script()
