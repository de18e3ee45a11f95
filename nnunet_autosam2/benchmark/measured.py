"""Runs a command in this process and writes down the most memory that it took.

Usage: python -m nnunet_autosam2.benchmark.measured RECORD COMMAND [ARGUMENT]...
"""

from __future__ import annotations

import json
import resource
import sys
from importlib.metadata import entry_points
from pathlib import Path


def main() -> None:
    record, command = Path(sys.argv[1]), sys.argv[2]
    (script,) = entry_points(group="console_scripts", name=command)
    sys.argv = sys.argv[2:]
    try:
        script.load()()
    finally:
        before = json.loads(record.read_text())["peak_memory_bytes"] if record.exists() else 0
        record.write_text(json.dumps({"peak_memory_bytes": max(before, peak_memory())}))


def peak_memory() -> int:
    """Bytes allocated on the GPU, or without one the resident set of this process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
