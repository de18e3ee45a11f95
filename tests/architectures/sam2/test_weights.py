import copy
import json
import os
import pickle
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES, build_sam2
from torch import nn

from nnunet_autosam2.architectures.sam2.weights import (
    MILLION_PARAMETERS,
    find,
    hub_file,
    load_into,
    obtain,
    read_checkpoint,
    recognise,
)
from nnunet_autosam2.config import SAM2_MODELS, AutoSAM2Config
from nnunet_autosam2.errors import WeightsError
from tests.shared_data import CHECKPOINT_LAYOUTS

TINY = "sam2.1_hiera_tiny.pt"
TINY_CONFIG = "configs/sam2.1/sam2.1_hiera_t.yaml"
OFFICIAL = {
    "sam2.1_hiera_tiny.pt": "sam2.1-hiera-tiny",
    "sam2.1_hiera_small.pt": "sam2.1-hiera-small",
    "sam2.1_hiera_base_plus.pt": "sam2.1-hiera-base-plus",
    "sam2.1_hiera_large.pt": "sam2.1-hiera-large",
    "medical_sam2_pretrain.pth": "sam2-hiera-tiny",
}
"""Checkpoint file → the official model that has its layout"""


def used_parts(sam2_config: str) -> nn.Module:
    """The children of a whole SAM2, built by the sam2 package, that AutoSAM2 uses."""
    whole = build_sam2(sam2_config, device="cpu")
    parts = nn.Module()
    for name in ("image_encoder", "sam_prompt_encoder", "sam_mask_decoder", "no_mem_embed"):
        setattr(parts, name, getattr(whole, name))
    return parts


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    return used_parts(TINY_CONFIG)


@pytest.fixture(scope="module")
def whole_tiny() -> nn.Module:
    """With the parts for video."""
    return build_sam2(TINY_CONFIG, device="cpu")


def official_state(layout: str, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Random tensors under the names and with the shapes of a real checkpoint file."""
    path = CHECKPOINT_LAYOUTS / f"{layout}.json"
    if not path.is_file():
        pytest.skip(f"{path.name} is not beside the project")
    generator = torch.Generator().manual_seed(0) if device == "cpu" else None
    shapes = json.loads(path.read_text())
    return {name: torch.randn(shape, generator=generator, device=device) for name, shape in shapes.items()}


def random_like(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: torch.randn_like(tensor) for name, tensor in module.state_dict().items()}


def saved(path: Path, content) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("layout", "sam2_config"),
    [
        ("sam2.1_hiera_tiny.pt", TINY_CONFIG),
        ("sam2.1_hiera_small.pt", "configs/sam2.1/sam2.1_hiera_s.yaml"),
        ("medical_sam2_pretrain.pth", "configs/sam2/sam2_hiera_t.yaml"),
    ],
)
def test_official_layout_fills_the_used_parts(tmp_path, layout, sam2_config):
    state = official_state(layout)
    path = saved(tmp_path / layout, {"model": state})
    parts = used_parts(sam2_config)
    load_into(parts, read_checkpoint(path), path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in parts.state_dict().items())


@pytest.mark.real_data
@pytest.mark.parametrize("size", ["small", "base_plus", "large"])
def test_checkpoint_of_another_size_names_that_size(tiny, size):
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_into(tiny, official_state(f"sam2.1_hiera_{size}.pt", device="meta"), "big.pt")
    assert "big.pt does not fit" in str(error.value)
    assert f"sam2.1-hiera-{size.replace('_', '-')}" in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.state_dict().items())


def test_missing_unknown_and_reshaped_entries_are_named(tiny):
    state = dict(tiny.state_dict())
    del state["no_mem_embed"]
    state["image_encoder.surplus"] = torch.zeros(1)
    state["sam_mask_decoder.iou_token.weight"] = torch.zeros(3, 256)
    with pytest.raises(WeightsError) as error:
        load_into(tiny, state, "odd.pt")
    message = str(error.value)
    assert "1 missing: no_mem_embed" in message
    assert "1 unknown: image_encoder.surplus" in message
    assert "sam_mask_decoder.iou_token.weight (expected [1, 256], found [3, 256])" in message
    assert "\n" not in message


def test_video_memory_is_left_out(tiny):
    state = {
        **tiny.state_dict(),
        "maskmem_tpos_enc": torch.zeros(7, 1, 1, 64),
        "obj_ptr_proj.bias": torch.zeros(1),
    }
    load_into(tiny, state, "video.pt")


def test_video_memory_is_loaded_where_the_module_has_it(whole_tiny):
    state = random_like(whole_tiny)
    load_into(whole_tiny, state, "whole.pt")
    assert all(torch.equal(tensor, state[name]) for name, tensor in whole_tiny.state_dict().items())


def test_a_module_with_video_memory_requires_that_of_its_version(whole_tiny, tiny):
    before = {name: tensor.clone() for name, tensor in whole_tiny.state_dict().items()}
    with pytest.raises(WeightsError, match="160 missing: maskmem_tpos_enc"):
        load_into(whole_tiny, random_like(tiny), "single_slices.pt")
    of_2_0 = build_sam2("configs/sam2/sam2_hiera_t.yaml", device="cpu")
    with pytest.raises(WeightsError, match=r"3 missing: no_obj_embed_spatial, .*set sam2_model to sam2-hiera-tiny"):
        load_into(whole_tiny, random_like(of_2_0), "old.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole_tiny.state_dict().items())


@pytest.fixture
def adapted(tiny) -> nn.Module:
    """With peft's adapters, not zero, in the image encoder's attention."""
    module = copy.deepcopy(tiny)
    inject_adapter_in_model(
        LoraConfig(r=2, target_modules=r".*attn\.(qkv|proj)", init_lora_weights=False), module.image_encoder
    )
    return module


def test_weights_go_under_the_adapters(adapted, tiny):
    adapters = {name: tensor.clone() for name, tensor in adapted.state_dict().items() if ".lora_" in name}
    assert len(adapters) == 48  # two for each of two layers in 12 blocks
    state = random_like(tiny)
    load_into(adapted, state, "weights.pt")
    loaded = adapted.state_dict()
    assert all(torch.equal(loaded.pop(name), tensor) for name, tensor in adapters.items())
    assert {name.replace(".base_layer", "") for name in loaded} == set(state)
    assert all(torch.equal(tensor, state[name.replace(".base_layer", "")]) for name, tensor in loaded.items())


def test_entries_under_adapters_are_named_as_in_the_checkpoint(adapted, tiny):
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    state = random_like(tiny)
    del state["image_encoder.trunk.blocks.0.attn.qkv.weight"]
    with pytest.raises(WeightsError, match=r"1 missing: image_encoder\.trunk\.blocks\.0\.attn\.qkv\.weight\."):
        load_into(adapted, state, "odd.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapted.state_dict().items())


@pytest.mark.real_data
@pytest.mark.parametrize("layout", OFFICIAL)
def test_the_model_is_recognised(layout):
    state = official_state(layout, device="meta")
    assert recognise(state) == OFFICIAL[layout]
    state["image_encoder.trunk.patch_embed.proj.weight"] = torch.zeros(100, 3, 7, 7)
    assert recognise(state) is None


@pytest.mark.real_data
@pytest.mark.parametrize("layout", OFFICIAL)
def test_parameters_are_those_of_the_official_file(layout):
    size = OFFICIAL[layout].partition("-hiera-")[2]
    parameters = sum(prod(tensor.shape) for tensor in official_state(layout, device="meta").values())
    assert MILLION_PARAMETERS[size] == round(parameters / 1e6)


class Code:
    """Touches a file as soon as it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_checkpoint_with_code_is_refused_and_not_run(tmp_path):
    content = {"model": {"weight": Code(tmp_path / "ran")}}
    saved(tmp_path / "zip.pt", content)
    torch.save(content, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(content))
    for name in ("zip.pt", "legacy.pt", "plain.pt"):
        with pytest.raises(WeightsError, match=f"{name} is refused: found a pickle that could run code"):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"state_dict": {}, "epoch": 3}, "found the keys state_dict, epoch"),
        ([torch.zeros(1)], "found a list"),
        ({"model": {0: torch.zeros(1)}}, "does not map names to tensors"),
        ({"model": {"weight": 3}}, "does not map names to tensors"),
        ({"model": {}}, "does not map names to tensors"),
    ],
)
def test_another_layout_is_refused(tmp_path, content, found):
    path = saved(tmp_path / "other.pt", content)
    with pytest.raises(WeightsError, match=found) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)


def test_damaged_and_missing_files_are_refused(tmp_path):
    whole = saved(tmp_path / "whole.pt", {"model": {"weight": torch.zeros(1000)}}).read_bytes()
    half = whole[: len(whole) // 2]
    for name, data, found in (
        ("half.pt", half, f"a truncated or damaged file of {len(half):,} bytes"),
        ("empty.pt", b"", "an empty file"),
        ("text.pt", b"hello " * 99, "a file that torch.save did not write, starting with b'hello "),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(WeightsError, match=f"{name} is refused: found {found}"):
            read_checkpoint(tmp_path / name)
    with pytest.raises(WeightsError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pt")
    with pytest.raises(WeightsError, match="is a folder, where a file has to be"):
        read_checkpoint(tmp_path)


def test_the_configured_file_comes_before_the_environment(tmp_path, monkeypatch):
    configured, in_environment = tmp_path / "mine.pt", tmp_path / TINY
    configured.touch()
    in_environment.touch()
    monkeypatch.setenv("AUTOSAM2_SAM2_WEIGHTS", str(in_environment))
    assert obtain(AutoSAM2Config(sam2_checkpoint=str(configured))) == configured
    assert obtain(AutoSAM2Config()) == in_environment
    monkeypatch.setenv("AUTOSAM2_SAM2_WEIGHTS", str(tmp_path))
    assert obtain(AutoSAM2Config()) == in_environment


def test_random_weights_warn(monkeypatch):
    monkeypatch.setenv("AUTOSAM2_SAM2_WEIGHTS", "/nowhere")
    with pytest.warns(UserWarning, match="random"):
        assert obtain(AutoSAM2Config(sam2_checkpoint="random")) is None


def test_a_wrong_path_is_an_error_and_nothing_else_is_tried(tmp_path, monkeypatch):
    with pytest.raises(WeightsError, match=r"sam2_checkpoint = .*none.pt is not a file"):
        find(AutoSAM2Config(sam2_checkpoint=str(tmp_path / "none.pt")))
    monkeypatch.setenv("AUTOSAM2_SAM2_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError, match=r"sam2.1_hiera_large.pt is not a file"):
        find(AutoSAM2Config(sam2_model="sam2.1-hiera-large"))


@pytest.mark.parametrize("model", SAM2_MODELS)
def test_every_model_has_its_official_file(tmp_path, monkeypatch, model):
    repository, filename = hub_file(model)
    assert HF_MODEL_ID_TO_FILENAMES[repository][1] == filename
    official = tmp_path / filename
    official.touch()
    monkeypatch.setenv("AUTOSAM2_SAM2_WEIGHTS", str(tmp_path))
    assert find(AutoSAM2Config(sam2_model=model)).path == official


def in_fresh_process(code: str, **environment: str) -> str:
    """The model hub's client reads its environment when it is imported."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "AUTOSAM2_"))}
    imports = (
        "from nnunet_autosam2 import AutoSAM2Config, errors\nfrom nnunet_autosam2.architectures.sam2 import weights"
    )
    script = f"{imports}\n{code}"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_without_network_the_error_names_every_way(tmp_path):
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        message = in_fresh_process(
            "import time\n"
            "start = time.time()\n"
            "try:\n    weights.obtain(AutoSAM2Config())\n"
            "except errors.WeightsError as error:\n    print(error)\n"
            "assert time.time() - start < 8",
            HF_HOME=str(tmp_path),
            **environment,
        )
        for way in (
            "sam2_checkpoint=FILE",
            "AUTOSAM2_SAM2_WEIGHTS",
            TINY,
            "network",
            "sam2_checkpoint=random",
        ):
            assert way in message
        assert "\n" not in message


def test_download_then_local_cache(tmp_path, hub):
    downloaded = in_fresh_process(
        "assert weights.find(AutoSAM2Config()).kind == 'hub'\nprint(weights.obtain(AutoSAM2Config()))",
        HF_HOME=str(tmp_path),
        **hub.environment,
    )
    assert Path(downloaded).read_bytes() == hub.content
    cached = in_fresh_process(
        "assert weights.find(AutoSAM2Config()).kind == 'cache'\nprint(weights.obtain(AutoSAM2Config()))",
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path),
    )
    assert cached == downloaded
