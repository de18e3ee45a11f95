"""Runs commands as forks of one process that has imported torch, nnU-Net and this package, but computed nothing.

Importing them takes longer than most of what the commands of the tests do. Each command still is a process of its own
with its own arguments, folders and environment, and runs the script that was installed for it.
"""

from __future__ import annotations

import atexit
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
from multiprocessing import context, forkserver, util
from pathlib import Path
from typing import IO

READ_WHEN_USED = {"AUTOSAM2_SAM2_WEIGHTS", "EXPERIMENT_SEED", "nnUNet_extTrainer", "nnUNet_n_proc_DA"}
"""Variables that may differ between commands, because no module reads them when it is imported"""
MODULES = (
    "nnunetv2.evaluation.evaluate_predictions",
    "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints",
    "nnunetv2.inference.predict_from_raw_data",
    "nnunetv2.run.run_training",
    "nnunet_autosam2.cli.configure",
    "nnunet_autosam2.show.loading",
    "nnunet_autosam2.trainers",
    "sam2.build_sam",
)


class ForkServer:
    """The process that forks, as the tests see it."""

    def __init__(self, variables: dict[str, str]) -> None:
        self.variables = _fixed(variables)
        self._requests, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            env=variables,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()

    def serves(self, command: str, variables: dict[str, str]) -> bool:
        """Whether it is a script of this environment, or a file in Python, that would import the same way."""
        script = Path(shutil.which(command, path=variables["PATH"]) or command)
        ours = script.parent == Path(sys.executable).parent and not script.name.startswith("python")
        return (ours or script.suffix == ".py") and _fixed(variables) == self.variables

    def run(self, command: list[str], folder: Path, variables: dict[str, str], output: IO[str], timeout: float) -> int:
        """Exit code. Standard output and error go to `output`."""
        request = json.dumps({"command": command, "folder": str(folder), "variables": variables}) + "\n"
        self._requests.settimeout(timeout)
        socket.send_fds(self._requests, [b"0"], [output.fileno()])
        self._requests.sendall(request.encode())
        answer = self._requests.makefile().readline()
        assert answer, "the fork server has ended"
        return int(answer)

    def close(self) -> None:
        self._requests.close()
        os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait()


def _fixed(variables: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name not in READ_WHEN_USED}


def serve(requests: socket.socket) -> None:
    """Returns in each fork, with the command's script to be run, and ends when nobody asks any more."""
    while (received := socket.recv_fds(requests, 1, 1))[0]:
        (output,) = received[1]
        request = json.loads(requests.makefile().readline())
        if pid := os.fork():
            os.close(output)
            _, status = os.waitpid(pid, 0)
            requests.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            continue
        requests.close()
        _become(**request, output=output)
        return
    sys.exit()


def _become(command: list[str], folder: str, variables: dict[str, str], output: int) -> None:
    import numpy as np

    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    os.close(output)
    multiprocessing.cpu_count = lambda: 1  # by which nnU-Net chooses torch's threads: the unit tests run beside it
    np.random.seed()  # seeded when it was imported, as every fork would be
    sys.argv[:] = [shutil.which(command[0]) or command[0], *command[1:]]
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


if __name__ == "__main__":
    for module in MODULES:
        importlib.import_module(module)
    serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_path(sys.argv[0], run_name="__main__")
