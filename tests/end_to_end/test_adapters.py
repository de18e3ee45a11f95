"""Training with low-rank adapters by nnU-Net's commands, and the model without them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_autosam2.show.loading import load_trained

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]
CPU = ("-device", "cpu")
IMAGE_ENCODER = "sam2_branch.sam2.image_encoder."


def weights(model: Path) -> dict[str, torch.Tensor]:
    path = model / "fold_0" / "checkpoint_final.pth"
    return torch.load(path, map_location="cpu", weights_only=False)["network_weights"]


@pytest.fixture(scope="module")
def adapted(planned) -> Path:
    """Results folder of a model with adapters."""
    planned.run(
        "autosam2", "configure", "900", "--base", "tiny", "--name", "adapters",
        "sam2_tuning=lora", "lora_rank=4", "num_epochs=2", "sam2_precision=float32",
    )  # fmt: skip
    planned.run("nnUNetv2_train", "900", "adapters", "0", "-tr", "nnUNetTrainerAutoSAM2", *CPU)
    return planned.results("nnUNetTrainerAutoSAM2", "adapters")


def test_only_the_adapters_of_the_image_encoder_have_changed(planned, adapted: Path) -> None:
    start = torch.load(planned.root / "sam2_weights.pt", weights_only=True)["model"]
    encoder = {n.removeprefix("sam2_branch.sam2."): t for n, t in weights(adapted).items() if IMAGE_ENCODER in n}
    adapters = {name for name in encoder if ".lora_" in name}
    assert len(adapters) == 48
    assert all(encoder[name].any() for name in adapters)  # half of them start as 0
    for name in encoder.keys() - adapters:
        assert torch.equal(encoder[name], start[name.replace(".base_layer", "")]), name
    mapper = [tensor for name, tensor in weights(adapted).items() if "mri_to_rgb.residual" in name]
    assert all(tensor.any() for tensor in mapper)  # starts as 0


def test_merged_model_predicts_the_same_without_adapters_and_without_peft(
    planned, adapted: Path, images: Path, tmp_path: Path
) -> None:
    merged = planned.root / "merged"
    assert f"{merged}: 1 fold without adapters" in planned.run("autosam2", "merge-adapters", adapted, merged)
    assert not any(".lora_" in name or "base_layer" in name for name in weights(merged))
    networks = [load_trained(model, "0", "checkpoint_final.pth").network.eval() for model in (adapted, merged)]
    with torch.no_grad():
        volume = torch.randn(1, 4, 24, 32, 32)
        torch.testing.assert_close(*(network(volume) for network in networks), rtol=0, atol=1e-4)
    with_adapters = planned.probabilities(adapted, images, tmp_path / "with")
    (tmp_path / "peft.py").write_text("raise OSError('not needed')")
    planned.environment["PYTHONPATH"] = str(tmp_path)
    try:
        without = planned.probabilities(merged, images, tmp_path / "without")
    finally:
        del planned.environment["PYTHONPATH"]
    assert list(with_adapters) == list(without) == ["phantom_001.npz", "phantom_002.npz"]
    for name, expected in with_adapters.items():  # nnU-Net adds tiles up in half precision
        np.testing.assert_allclose(without[name], expected, rtol=0, atol=1e-3)


def test_merging_refuses_what_it_cannot_merge(planned, adapted: Path, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    for model, output, message in (
        (trained, "new", "not trained with sam2_tuning=lora"),
        (adapted, "taken", "exists already"),
        (adapted, "no/where", "is not a folder"),
        (tmp_path, "new", "has no fold with checkpoint_final.pth"),
    ):
        error = planned.run("autosam2", "merge-adapters", model, tmp_path / output, expected=1)
        assert message in error
        assert "Traceback" not in error
    assert "no_such.pth" in planned.run(
        "autosam2", "merge-adapters", adapted, tmp_path / "new", "--checkpoint", "no_such.pth", expected=1
    )
    assert {path.name for path in tmp_path.iterdir()} == {"taken"}


def test_a_model_with_memory_and_mask_prompts_trains_and_predicts(planned, images: Path, tmp_path: Path) -> None:
    planned.run(
        "autosam2", "configure", "900", "--base", "tiny", "--name", "memory",
        "propagation=memory", "mask_prompt=true", "box_prompt=false", "num_epochs=1",
    )  # fmt: skip
    planned.run("nnUNetv2_train", "900", "memory", "0", "-tr", "nnUNetTrainerAutoSAM2", *CPU)
    model = planned.results("nnUNetTrainerAutoSAM2", "memory")
    start = torch.load(planned.root / "sam2_weights.pt", weights_only=True)["model"]
    after = {name.removeprefix("sam2_branch.sam2."): tensor for name, tensor in weights(model).items()}
    assert torch.equal(after["maskmem_tpos_enc"], start["maskmem_tpos_enc"])
    name = "sam_prompt_encoder.mask_downscaling.0.weight"
    assert not torch.equal(after[name], start[name])
    found = planned.probabilities(model, images, tmp_path)
    assert len(found) == 2
    assert all(np.isfinite(values).all() for values in found.values())
    assert len(json.loads((model / "fold_0" / "validation" / "summary.json").read_text())["metric_per_case"]) > 0
