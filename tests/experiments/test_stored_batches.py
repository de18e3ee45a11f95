"""Batches that the arms of an experiment share."""

import threading
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from experiments import stored_batches
from experiments.stored_batches import StoredBatches, batch_file, write_batch

SCALES = [[1.0, 1.0, 1.0], [0.5, 0.5, 0.5], [0.25, 0.5, 0.25]]


def store(folder: Path, number: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    data = torch.randn(2, 4, 8, 8, 8, generator=generator)
    target = torch.randint(0, 2, (2, 3, 8, 8, 8), generator=generator)
    write_batch(batch_file(folder, number), data, target)
    return {"data": data, "target": target}


def test_batches_come_in_order_from_any_on_with_targets_at_all_scales(tmp_path: Path) -> None:
    stored = [store(tmp_path, number) for number in range(3)]
    batches = StoredBatches(tmp_path, SCALES)
    batches.next_batch = 1
    for expected in stored[1:]:
        batch = next(batches)
        assert batch["data"].dtype == torch.float32
        assert torch.equal(batch["data"], expected["data"].half().float())
        target = expected["target"].float()
        for found, scale in zip(batch["target"], SCALES, strict=True):
            size = [int(8 * step) for step in scale]
            assert torch.equal(found.float(), F.interpolate(target, size, mode="nearest-exact"))
    assert torch.equal(next(StoredBatches(tmp_path, None))["target"], stored[0]["target"].to(torch.int16))


def test_a_batch_that_is_still_being_made_is_waited_for(tmp_path: Path, monkeypatch) -> None:
    maker = threading.Timer(0.3, store, (tmp_path, 0))
    maker.start()
    assert len(next(StoredBatches(tmp_path, None))["data"]) == 2
    monkeypatch.setattr(stored_batches, "PATIENCE", 0.1)
    batches = StoredBatches(tmp_path, None)
    batches.next_batch = 1
    with pytest.raises(TimeoutError, match=r"1\.pt has not come"):
        next(batches)
