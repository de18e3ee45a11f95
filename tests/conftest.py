import copy
import ctypes
import gc
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_autosam2.config import PLANS_KEY, AutoSAM2Config
from nnunet_autosam2.trainers import nnUNetTrainerAutoSAM2
from tests.shared_data import DATA

pytest_plugins = ["benchmark_folder", "browser"]


def pytest_collection_finish() -> None:
    """What the tests import stays to the end: a search for garbage need not go through it each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True)
def environment_stays_as_it_was() -> Iterator[None]:
    """Libraries write into it as they are used, and commands are forked only where nothing differs."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(autouse=True, scope="module")
def memory_is_given_back() -> Iterator[None]:
    """To the system, after each file: glibc keeps what lies between blocks in use, as the Makefile asks it to."""
    yield
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Tests that a shell started in the background ignore Ctrl-C, and so would every command that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Hub(ThreadingHTTPServer):
    """Serves the weights of sam2.1-hiera-tiny as the model hub does."""

    path = "/facebook/sam2.1-hiera-tiny/resolve/main/sam2.1_hiera_tiny.pt"
    content = b"weights of SAM2"
    breaks_after: int | None = None
    """Bytes after which the connection breaks, once"""
    pause = 0.0
    """Seconds that a download takes"""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.starts: list[int] = []
        """First byte of each download"""

    @property
    def environment(self) -> dict[str, str]:
        """For a process that takes this for the model hub."""
        return {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.server_port}",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self, start: int = 0) -> None:
        size = len(self.server.content)
        self.send_response((206 if start else 200) if self.path == self.server.path else 404)
        self.send_header("ETag", '"0123abcd"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Content-Length", str(size - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()

    def do_GET(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.do_HEAD(start)
        if self.path == self.server.path:
            self.server.starts.append(start)
            end, self.server.breaks_after = self.server.breaks_after, None
            time.sleep(self.server.pause)
            self.wfile.write(self.server.content[start:end])

    def log_message(self, *_) -> None:
        pass


@contextmanager
def serving() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as server:
        yield server


@pytest.fixture
def real_data() -> Path:
    folder = DATA
    if not folder.is_dir():
        pytest.skip(f"the real cases are not in {folder}")
    return folder


def make_plans() -> dict:
    """As nnU-Net writes them, with a small hybrid on the planned network as the configuration `tiny`."""
    kwargs = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    function = "resample_data_or_seg_to_shape"
    operators = {
        "conv_op": "torch.nn.modules.conv.Conv3d", "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "dropout_op": None, "nonlin": "torch.nn.LeakyReLU",
    }  # fmt: skip
    network = {
        **operators, "n_stages": 3, "features_per_stage": [4, 8, 8], "kernel_sizes": [[3, 3, 3]] * 3,
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]], "n_conv_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1], "conv_bias": True, "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op_kwargs": None, "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    whole = {
        "data_identifier": "nnUNetPlans_3d_fullres", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": [24, 32, 32], "median_image_size_in_voxels": [24.0, 32.0, 32.0], "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * 4, "use_mask_for_norm": [True] * 4,
        **{f"resampling_fn_{kind}": function for kind in ("data", "seg", "probabilities")},
        **{f"resampling_fn_{kind}_kwargs": dict(kwargs) for kind in ("data", "seg", "probabilities")},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": network, "_kw_requires_import": list(operators),
        },
        "batch_dice": False,
    }  # fmt: skip
    config = AutoSAM2Config(
        backbone="plans", sam2_checkpoint="random", sam2_image_size=64, region_based=True, rgb_channels=(0, 1, 2)
    )
    channel = {"max": 9.0, "mean": 2.0, "median": 2.0, "min": 0.0, "percentile_00_5": 0.0, "percentile_99_5": 8.0,
               "std": 1.0}  # fmt: skip
    content = {
        "dataset_name": "Dataset900_Phantom", "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0], "original_median_shape_after_transp": [24, 32, 32],
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
        "configurations": {
            "3d_fullres": whole, "tiny": {"inherits_from": "3d_fullres", PLANS_KEY: config.to_dict()},
        },
        "experiment_planner_used": "ExperimentPlanner", "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(number): dict(channel) for number in range(4)},
    }  # fmt: skip
    return json.loads(json.dumps(content))  # no list or dictionary is in it twice


def make_dataset_json() -> dict:
    """As convert-brats writes it."""
    return {
        "channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"},
        "labels": {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3},
        "regions_class_order": [1, 2, 3],
        "numTraining": 5,
        "file_ending": ".nii.gz",
        "brats_release": "2018-2021",
    }


@pytest.fixture
def plans() -> dict:
    return make_plans()


@pytest.fixture
def dataset_json() -> dict:
    return make_dataset_json()


@pytest.fixture(scope="session")
def whole_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results folder with a network as it is before any training."""
    folder = tmp_path_factory.mktemp("whole") / "nnUNetTrainerAutoSAM2__nnUNetPlans__tiny"
    (folder / "fold_0").mkdir(parents=True)
    plans, dataset_json = make_plans(), make_dataset_json()
    manager = PlansManager(plans)
    settings = manager.get_configuration("tiny")
    network = nnUNetTrainerAutoSAM2.build_network_architecture(manager, settings, 4, 3, False)
    log = ("train_losses", "val_losses", "ema_fg_dice", "epoch_start_timestamps", "epoch_end_timestamps")
    content = {
        "network_weights": network.state_dict(),
        "init_args": {"plans": plans, "configuration": "tiny", "fold": 0, "dataset_json": dataset_json},
        "trainer_name": "nnUNetTrainerAutoSAM2",
        "inference_allowed_mirroring_axes": (0, 1, 2),
        "logging": {name: [1.0] for name in log},
    }
    torch.save(content, folder / "fold_0" / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    return folder


@pytest.fixture
def model(whole_model: Path, tmp_path: Path) -> Path:
    """`whole_model` for one test; its checkpoint, which is large, is a link that nothing may write through."""
    folder = tmp_path / whole_model.name
    (folder / "fold_0").mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        shutil.copy(whole_model / name, folder)
    (folder / "fold_0" / "checkpoint_final.pth").symlink_to(whole_model / "fold_0" / "checkpoint_final.pth")
    return folder


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that is there as soon as anything has imported the module `trap`, which Python finds."""
    folder = tmp_path / "modules"
    folder.mkdir()
    trace = tmp_path / "trace"
    (folder / "trap.py").write_text(
        f"open({str(trace)!r}, 'a').close()\n\n\nclass Network:\n    def __init__(self, *_, **__): pass\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    yield trace
    sys.modules.pop("trap", None)


STRANGE: list[object] = [
    None, True, False, 0, 1, -1, 7, 2**63, 10**400, 0.5, 1e308, -1e-300, float("nan"), float("inf"), "", "x", "0", "é",
    "\x1b[2K\rSAFE", "a\nb", "\x00", "\ud800", "=1+1", "../../outside", "/etc/passwd", "x" * 5000, "trap", "time",
    "trap.Network", "os.system", "torch.hub.load", "__file__", [], {}, [[]], [None], {"": None}, [0, 0, 0], [1, 2, 3],
    [10**9] * 3, {"trap": "trap.Network"}, [["trap"]], [[[1]]],
]  # fmt: skip
"""In the place of what is expected"""


@st.composite
def foreign(draw: st.DrawFn, content: Any) -> bytes:
    """JSON that says something else in one to three places, or is cut, or is no JSON at all."""
    changed = {"root": json.loads(json.dumps(content))}
    for _ in range(draw(st.integers(1, 3))):
        parent, key = draw(st.sampled_from(list(_places(changed))))
        change = draw(st.sampled_from(["near"] * 8 + ["replace"] * 4 + ["remove", "rename", "wrap", "repeat"]))
        if change == "near":
            parent[key] = copy.deepcopy(draw(st.sampled_from(_near(parent[key]))))
        elif change == "replace" or parent is changed:
            parent[key] = copy.deepcopy(draw(st.sampled_from(STRANGE)))
        elif change == "remove":
            del parent[key]
        elif change == "wrap":
            parent[key] = [parent[key]]
        elif isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        else:
            other = str(draw(st.sampled_from(STRANGE)))
            parent[other] = copy.deepcopy(parent[key]) if change == "repeat" else parent.pop(key)
    written = json.dumps(changed["root"]).encode()
    how = draw(st.integers(0, 29))
    if how == 0:
        return written[: draw(st.integers(0, len(written)))]
    return draw(st.sampled_from([b"", b"{", b"null", b"[" * 10**5, b"\xff\xfe", b"1" * 5000])) if how == 1 else written


def _near(value: Any) -> list[Any]:
    """Of the same type, and so nearer to what could be meant."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)) and value == value and abs(value) < 10**300:
        return [value + 1, value * 2, value // 2, value * 10, -value, value * 10**6]
    if isinstance(value, list):
        return [value[::-1], value[1:], value * 2]
    if isinstance(value, dict):
        return [dict(list(value.items())[1:]), dict(reversed(value.items()))]
    return [f"{value}x", "nearest", "NoNormalization", "torch.nn.ReLU"] if isinstance(value, str) else [0, "x", None]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in it, however deep."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


@pytest.fixture(scope="session")
def foreign_json() -> Callable[[Any], st.SearchStrategy[bytes]]:
    """Of a content, what someone else could have made of it."""
    return foreign


@pytest.fixture(scope="session")
def every_time() -> settings:
    """For hypothesis: the same inputs in every run, however long one takes."""
    return settings(
        deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
    )
