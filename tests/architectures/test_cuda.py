"""On a GPU: what a CPU computes, training in mixed precision, and less memory than SAM2 would like to have."""

import copy
import gc
import logging
from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F

from nnunet_autosam2 import AutoSAM2
from nnunet_autosam2.architectures.masks import SliceMasks
from nnunet_autosam2.architectures.prompts import generate_prompts
from nnunet_autosam2.architectures.sam2.chunking import Chunked
from nnunet_autosam2.errors import OutOfMemoryError
from nnunet_autosam2.trainers.loss import AutoSAM2Loss, WeightedBCEDiceLoss

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore:sam2_checkpoint is random"),
]
SIZE = (16, 64, 64)
MODES = {
    "hybrid": {},
    "UNet only": {"enable_sam2": False},
    "SAM2 only": {"enable_unet_decoder": False},
    "parts": {"boxes_per_region": 3, "prompt_threshold": 0.3},
}
EVERY_MODE = pytest.mark.parametrize("mode", MODES)
REGIONS_AND_LABELS = pytest.mark.parametrize("region_based", [True, False], ids=["regions", "labels"])


@pytest.fixture
def exact() -> Iterator[None]:
    """float32 as the name says, not TF32."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = allowed


@pytest.fixture
def whole_memory() -> Iterator[int]:
    """Bytes; a limit that a test sets ends with it."""
    torch.cuda.empty_cache()
    yield torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0)


def volume_and_foreground(regions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[2, 2, *SIZE] and [2, regions, *SIZE], a ball within a larger one and so on."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in SIZE), indexing="ij")
    radius = torch.stack(axes).norm(dim=0)
    foreground = torch.stack([torch.sigmoid(20 * (0.8 - 0.2 * i - radius)) for i in range(regions)])
    foreground[:, 4:12, :6, :6] = 0.9  # another part of all of them
    volume = torch.randn(2, 2, *SIZE, generator=torch.Generator().manual_seed(1))
    return volume, torch.stack([foreground, foreground.flip(0)])


@EVERY_MODE
@REGIONS_AND_LABELS
def test_as_on_a_cpu(make_network, exact, mode, region_based) -> None:
    network = make_network(region_based=region_based, **MODES[mode]).eval()
    volume, foreground = volume_and_foreground(3 if region_based else 2)
    with torch.no_grad():
        expected = network(volume, foreground)
        logits = network.cuda()(volume.cuda(), foreground.cuda())
    torch.testing.assert_close(logits.cpu(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tuning", ["frozen", "decoder", "lora", "full"])
@EVERY_MODE
def test_trains_in_mixed_precision(make_network, mode, tuning) -> None:
    network: AutoSAM2 = make_network(region_based=True, sam2_precision="auto", sam2_tuning=tuning, **MODES[mode])
    network.cuda().train().set_deep_supervision(True)
    loss = AutoSAM2Loss(WeightedBCEDiceLoss(3, region_based=True))
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer, scaler = torch.optim.AdamW(parameters, lr=1e-4), torch.amp.GradScaler(init_scale=2.0**10)
    volume, foreground = (values.cuda() for values in volume_and_foreground(3))
    truth = (foreground > 0.5).float()
    targets = [truth[..., ::d, ::h, ::w].contiguous() for d, h, w in network.output_strides]
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        with torch.autocast("cuda"):
            output = network(volume)
        value = loss(output, targets)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(value.item())
    assert scaler.get_scale() == 2.0**10, "no step was skipped"
    assert all(parameter.isfinite().all() for parameter in parameters)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("tuning", ["decoder", "lora", "full"])
def test_compiled(make_network, exact, tuning) -> None:
    """As nnU-Net's trainer does it; the number of slices that a prediction asks about changes from patch to patch."""
    network: AutoSAM2 = make_network(region_based=True, sam2_tuning=tuning).cuda()
    compiled = copy.deepcopy(network)
    compiled.compile()
    volume, foreground = (values.cuda() for values in volume_and_foreground(3))
    logits = []
    for each in (network, compiled):
        each.train().set_deep_supervision(True)
        output = each(volume, foreground)
        output.logits.square().mean().backward()
        each.eval().set_deep_supervision(False)
        with torch.no_grad():
            few = each(volume, torch.where(foreground[:, :, :, :1, :1] > 0.3, foreground, 0))
        logits.append((output.logits, few))
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-3, atol=1e-3)
    pairs = [pair for pair in zip(compiled.parameters(), network.parameters(), strict=True) if pair[1].grad is not None]
    gradient, expected = (torch.cat([each.grad.flatten() for each in half]) for half in zip(*pairs, strict=True))
    assert (gradient - expected).norm() < 1e-3 * expected.norm()


def test_prompts_are_a_cpus() -> None:
    smooth = F.interpolate(torch.randn(48, 1, 16, 20), size=(96, 120), mode="bicubic")[:, 0]
    p = torch.cat([torch.sigmoid(4 * smooth - 2), torch.zeros(1, 96, 120), torch.ones(1, 96, 120)])
    expected, found = generate_prompts(p, 3, 2), generate_prompts(p.cuda(), 3, 2)
    assert torch.equal(found.labels.cpu(), expected.labels)
    assert (found.points.cpu() != expected.points).float().mean() < 0.01  # where squares round another way


def test_chunks_of_a_size_of_their_own() -> None:
    sizes = []

    def function(x: torch.Tensor) -> SliceMasks:
        sizes.append(len(x))
        return SliceMasks(x, x, x, x)

    chunked = Chunked(4, "test", size_on_gpu=16)
    for device in ("cpu", "cuda"):
        chunked(function, torch.zeros(16, device=device))
    assert sizes == [4, 4, 4, 4, 16]
    chunked.halve()
    chunked(function, torch.zeros(16, device="cuda"))
    assert sizes[5:] == [8, 8]


@pytest.mark.parametrize("trains", [False, True], ids=["prediction", "training"])
def test_out_of_memory_halves_the_chunks(make_network, exact, whole_memory, caplog, trains) -> None:
    volume, foreground = (values.cuda() for values in volume_and_foreground(3))

    def peak_and_logits(chunk: int) -> tuple[int, torch.Tensor]:
        network: AutoSAM2 = make_network(
            region_based=True, slice_fraction=1.0, training_slices=None, sam2_image_size=256, sam2_chunk_size=chunk
        ).cuda()
        network.train(trains).set_deep_supervision(trains)
        gc.collect()  # networks of other tests would count
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        while (logits := one_pass(network)) is None:
            assert network.halve_chunks()
        return torch.cuda.max_memory_allocated(), logits

    def one_pass(network: AutoSAM2) -> torch.Tensor | None:
        try:
            with torch.set_grad_enabled(trains):
                output = network(volume, foreground)
                if trains:
                    output.logits.sum().backward()
        except torch.OutOfMemoryError:
            return None
        return (output.logits if trains else output).detach().cpu()

    most, expected = peak_and_logits(32)
    least, by_ones = peak_and_logits(1)
    torch.testing.assert_close(by_ones, expected, rtol=1e-4, atol=1e-4)
    assert least < most

    torch.cuda.set_per_process_memory_fraction((least + most) / 2 / whole_memory)
    with caplog.at_level(logging.WARNING):
        _, logits = peak_and_logits(32)
    assert "Out of memory: SAM2's" in caplog.text
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_less_memory_than_one_slice_needs(make_network, whole_memory) -> None:
    network = make_network(region_based=True, slice_fraction=1.0, sam2_image_size=1024).cuda().eval()
    volume, foreground = (values.cuda() for values in volume_and_foreground(3))
    with torch.no_grad():
        torch.cuda.reset_peak_memory_stats()
        network.unet(volume)
        torch.cuda.set_per_process_memory_fraction((torch.cuda.max_memory_reserved() + 2**26) / whole_memory)
        with pytest.raises(OutOfMemoryError, match="with one slice at once"):
            network(volume, foreground)
