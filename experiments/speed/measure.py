"""Seconds, floating-point operations and bytes."""

from __future__ import annotations

import multiprocessing
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from experiments.speed.competitors import Competitor, Trained
from experiments.speed.setting import Setting
from nnunet_autosam2.benchmark.measured import peak_memory

torch._dynamo.config.recompile_limit = 64  # networks of one kind share the code that is compiled
FORWARD, STEP = "forward", "training step"


class Bench:
    """Volumes and targets, the same for all."""

    def __init__(self, setting: Setting) -> None:
        torch.manual_seed(0)
        self.setting, self.volume, self.targets = setting, setting.volume(), setting.targets()

    def run(self, competitor: Competitor, work: str) -> None:
        if work == FORWARD:
            competitor.forward(self.volume)
        else:
            assert isinstance(competitor, Trained)
            competitor.step(self.volume, self.targets)

    def seconds(self, competitor: Competitor, work: str) -> float:
        self._wait()
        start = time.perf_counter()
        self.run(competitor, work)
        self._wait()
        return time.perf_counter() - start

    def operations(self, competitor: Competitor, work: str) -> int:
        """Floating-point ones of convolutions, matrix products and attention."""
        with FlopCounterMode(display=False) as counter:
            self.run(competitor, work)
        return counter.get_total_flops()

    def launches(self, competitor: Competitor, work: str) -> int:
        """Kernels and graphs that the host launches in a run on a GPU."""
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            self.run(competitor, work)
            self._wait()
        names = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")
        return sum(event.count for event in profile.key_averages() if event.key.startswith(names))

    def _wait(self) -> None:
        if self.setting.on_gpu:
            torch.cuda.synchronize()


class Measured:
    """Measurements of one competitor at one kind of work."""

    def __init__(self, operations: int) -> None:
        self.operations = operations
        self.seconds: list[float] = []
        self.compiling = 0.0
        """Seconds of the first run after `compile`"""
        self.launches = 0
        """Of kernels and graphs, on a GPU"""


def interleaved(bench: Bench, competitors: Mapping[str, Competitor], work: str, rounds: int) -> dict[str, Measured]:
    """Each competitor once a round, after a warm-up: the run that is counted, and three more if it is compiled."""
    measured = {
        name: Measured(bench.operations(competitor, work))
        for name, competitor in tqdm(competitors.items(), desc=f"{work}: counting")
    }
    if bench.setting.compiled != "no":
        for name, competitor in tqdm(competitors.items(), desc=f"{work}: compiling"):
            competitor.compile(bench.setting.compiled)
            measured[name].compiling = bench.seconds(competitor, work)
            for _ in range(2):  # CUDA graphs are recorded in the second run
                bench.run(competitor, work)
    if bench.setting.on_gpu:
        for name, competitor in competitors.items():
            measured[name].launches = bench.launches(competitor, work)
    for _ in tqdm(range(rounds), desc=f"{work}: rounds"):
        for name, competitor in competitors.items():
            measured[name].seconds.append(bench.seconds(competitor, work))
    return measured


def seconds_by_depth(setting: Setting, competitor: Competitor, rounds: int) -> dict[int, list[float]]:
    """Seconds of a forward pass of volumes of a quarter of the patch's depth, a half, three quarters and all of it."""
    depth, height, width = setting.patch_size
    benches = {
        part * depth // 4: setting._replace(patch_size=(part * depth // 4, height, width)) for part in (1, 2, 3, 4)
    }
    volumes = {size: changed.volume() for size, changed in benches.items()}
    seconds = defaultdict(list)
    for round_ in tqdm(range(rounds + 1), desc="depths"):
        for size, volume in volumes.items():
            start = time.perf_counter()
            competitor.forward(volume)
            if setting.on_gpu:
                torch.cuda.synchronize()
            if round_:
                seconds[size].append(time.perf_counter() - start)
    return dict(seconds)


def memory_of_runs(setting: Setting, make: Callable[[], Competitor], work: str) -> int:
    """Bytes that runs need in a process of their own: the process itself in two, or a GPU's allocator in the second."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, setting, make, work).result()  # which the system may end, for want of memory


def _peak(setting: Setting, make: Callable[[], Competitor], work: str) -> int:
    warnings.simplefilter("ignore")
    if setting.gpu_memory is not None:
        whole = torch.cuda.get_device_properties(setting.device).total_memory
        torch.cuda.set_per_process_memory_fraction(setting.gpu_memory * 2**30 / whole)
    bench, competitor = Bench(setting), make()
    if setting.compiled != "no":
        competitor.compile(setting.compiled)
    bench.run(competitor, work)
    if setting.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    bench.run(competitor, work)
    return peak_memory(setting.on_gpu)
