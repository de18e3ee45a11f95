"""Training steps of networks that are compiled: each in a process of its own, all compiled at once, timed in turns."""

from __future__ import annotations

import multiprocessing
import traceback
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import NamedTuple

import click
import torch

from experiments.speed.competitors import Competitor
from experiments.speed.measure import STEP, Bench, Measured
from experiments.speed.setting import Setting
from nnunet_autosam2.benchmark.measured import peak_memory

WARM_UP = 3
"""Steps after the one that compiles; CUDA graphs are recorded in the first of them"""


class Contestant(NamedTuple):
    setting: Setting
    """With the way in which it is compiled"""
    make: Callable[[], Competitor]


def steps_in_turns(contestants: Mapping[str, Contestant], rounds: int) -> tuple[dict[str, Measured], dict[str, int]]:
    """What was measured of each one's training step, and its peak memory in bytes. Those that fail are named."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(contestants))
    pipes = {name: context.Pipe(duplex=False) for name in contestants}
    processes = [
        context.Process(target=_compete, args=(place, each, rounds, barrier, pipes[name][1]))
        for place, (name, each) in enumerate(contestants.items())
    ]
    for process in processes:
        process.start()
    for _, theirs in pipes.values():
        theirs.close()
    measured, memory = {}, {}
    try:
        for name, (ours, _) in pipes.items():
            result = ours.recv()
            if isinstance(result, str):
                click.echo(f"{name} has failed: {result}", err=True)
            else:
                measured[name], memory[name] = result
    finally:
        for process in processes:
            process.terminate()
    return measured, memory


def _compete(place: int, contestant: Contestant, rounds: int, barrier: Barrier, results: Connection) -> None:
    """One that fails goes on taking its turns: the others wait for all."""
    warnings.simplefilter("ignore")
    failure, measured, memory = "", Measured(0), 0
    try:
        bench, competitor = Bench(contestant.setting), contestant.make()
        measured, memory = _warmed_up(contestant.setting, bench, competitor)
    except Exception:
        failure = traceback.format_exc()
    for _ in range(rounds):
        for turn in range(barrier.parties):
            barrier.wait()
            if turn == place and not failure:
                measured.seconds.append(bench.seconds(competitor, STEP))
    barrier.wait()
    if not failure and contestant.setting.on_gpu:
        measured.launches = bench.launches(competitor, STEP)
    results.send(failure or (measured, memory))


def _warmed_up(setting: Setting, bench: Bench, competitor: Competitor) -> tuple[Measured, int]:
    measured = Measured(bench.operations(competitor, STEP))
    if setting.compiled != "no":
        competitor.compile(setting.compiled)
        measured.compiling = bench.seconds(competitor, STEP)
    for _ in range(WARM_UP):
        bench.run(competitor, STEP)
    if setting.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    bench.run(competitor, STEP)
    return measured, peak_memory(setting.on_gpu)
