"""Runs a command in this process and writes down the most memory that it took.

Usage: python -m nnunet_autosam2.benchmark.measured RECORD COMMAND [ARGUMENT]...
"""

from __future__ import annotations

import resource
import sys
from importlib.metadata import entry_points
from pathlib import Path

from nnunet_autosam2.benchmark.kept import TrainingCost, read_kept
from nnunet_autosam2.errors import DatasetError
from nnunet_autosam2.support.staging import replace_file


def main() -> None:
    record, command = Path(sys.argv[1]), sys.argv[2]
    (script,) = entry_points(group="console_scripts", name=command)
    sys.argv = sys.argv[2:]
    try:
        script.load()()
    finally:
        _keep(record, peak_memory())


def _keep(record: Path, peak: int) -> None:
    """The command counts, not this number: where the disk refuses it, that is said in the log, and all goes on."""
    try:
        before = read_kept(record, TrainingCost)
        most = TrainingCost(peak_memory_bytes=max(peak, before.peak_memory_bytes if before else 0))
        replace_file(record, most.model_dump_json())
    except (OSError, DatasetError) as error:
        print(f"The peak memory is not kept: {error}", file=sys.stderr)


def peak_memory(on_gpu: bool | None = None) -> int:
    """Bytes allocated on the GPU, or the largest resident set of this process.

    Args:
        on_gpu: None: if there is one.
    """
    import torch

    if torch.cuda.is_available() if on_gpu is None else on_gpu:
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
