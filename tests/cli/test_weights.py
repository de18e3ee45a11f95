import json
import os
import pickle
import re
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from sam2.build_sam import build_sam2

from nnunet_autosam2.architectures.autosam2 import AutoSAM2
from nnunet_autosam2.cli.main import main
from nnunet_autosam2.config import SAM2_MODELS, AutoSAM2Config
from nnunet_autosam2.errors import WeightsError
from tests.fork_server import run
from tests.shared_data import CHECKPOINT_LAYOUTS

COMMAND_LINE = "from nnunet_autosam2.cli.main import main; main()"
TINY = "sam2.1_hiera_tiny.pt"
Run = subprocess.CompletedProcess[str]


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """Nothing of this machine's own settings, an empty cache, no network."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "AUTOSAM2_"))}
    return {**inherited, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def online(environment, hub) -> dict[str, str]:
    return {**environment, **hub.environment, "HF_HUB_OFFLINE": "0"}


def weights(environment: dict[str, str], *arguments: str | Path) -> Run:
    """As a user runs it."""
    return run("autosam2", "weights", *arguments, variables=environment)


def weights_here(*arguments: str | Path, **environment: str) -> Result:
    """The same in this process, which has imported torch already."""
    return CliRunner().invoke(main, ["weights", *map(str, arguments)], env=environment)


def table(listed: Run) -> dict[str, list[str]]:
    """Model → the other cells of its row."""
    header, *rows = listed.stdout.splitlines()
    assert header.split() == ["model", "file", "repository", "parameters", "where"]
    return {row.split()[0]: row.split(maxsplit=5)[1:] for row in rows}


def message(failed: Run | Result) -> str:
    """The one line of a command that has failed."""
    code = failed.returncode if isinstance(failed, subprocess.CompletedProcess) else failed.exit_code
    assert (code, failed.stdout) == (1, ""), failed.stdout + failed.stderr
    (line,) = failed.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


def entries(sam2_config: str) -> dict[str, torch.Tensor]:
    """Names and shapes of a whole SAM2 as its package builds it; all tensors share one number in the file."""
    state = build_sam2(sam2_config, device="cpu").state_dict()
    return {name: torch.full((1,), 0.5).expand(tensor.shape) for name, tensor in state.items()}


@pytest.fixture(scope="module")
def of_tiny() -> dict[str, torch.Tensor]:
    return entries("configs/sam2.1/sam2.1_hiera_t.yaml")


@pytest.fixture
def tiny(tmp_path, of_tiny) -> Path:
    torch.save({"model": of_tiny}, tmp_path / TINY)
    return tmp_path / TINY


def test_list_names_every_official_model_without_network_or_torch(environment, tmp_path):
    for package in ("torch", "sam2"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise OSError('not needed')")
    path = os.pathsep.join([str(tmp_path), environment.get("PYTHONPATH", "")])
    models = table(weights({**environment, "PYTHONPATH": path}, "list"))
    assert tuple(models) == SAM2_MODELS
    name = "sam2.1-hiera-base-plus"
    assert models[name] == ["sam2.1_hiera_base_plus.pt", f"facebook/{name}", "81", "M", "not here"]
    assert {where for *_, where in models.values()} == {"not here"}


def test_list_says_where_each_file_is(environment, tmp_path):
    file = tmp_path / "sam2_hiera_small.pt"
    file.touch()
    models = table(weights({**environment, "AUTOSAM2_SAM2_WEIGHTS": str(tmp_path)}, "list"))
    assert models.pop("sam2-hiera-small")[-1] == f"{file} (environment variable AUTOSAM2_SAM2_WEIGHTS)"
    assert {where for *_, where in models.values()} == {f"not in AUTOSAM2_SAM2_WEIGHTS={tmp_path}"}


def test_get_downloads_once(environment, online, hub):
    got = weights(online, "get")
    path = Path(got.stdout.strip())
    assert (got.returncode, path.name, path.read_bytes()) == (0, TINY, hub.content), got.stderr
    assert "Apache License 2.0" in got.stderr

    again = weights(environment, "get", "sam2.1-hiera-tiny")
    assert (again.returncode, again.stdout) == (0, f"{path}\n")
    assert "already" in again.stderr
    found = weights(environment, "where")
    assert (found.stdout, found.stderr) == (f"{path}\n", "From: local cache of the model hub\n")
    assert table(weights(environment, "list"))["sam2.1-hiera-tiny"][-1].startswith(f"{path} (local cache")
    assert hub.starts == [0]


def test_two_processes_that_want_the_same_file_download_it_once(online, hub):
    hub.pause = 10.0
    command = [sys.executable, "-c", COMMAND_LINE, "weights", "get"]
    both = [subprocess.Popen(command, env=online, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate(timeout=120)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    (path,) = paths
    assert Path(path.strip()).read_bytes() == hub.content
    assert hub.starts == [0]


def test_get_resumes_where_the_connection_broke_and_shows_the_hubs_progress(online, hub):
    chunk = 10 * 2**20  # what the hub's client writes at once
    hub.content = os.urandom(chunk + 2000)
    hub.breaks_after = chunk + 1000
    got = weights({**online, "TQDM_POSITION": "-1"}, "get")  # a progress bar although this is no terminal
    assert got.returncode == 0, got.stderr
    assert hub.starts == [0, chunk]
    assert Path(got.stdout.strip()).read_bytes() == hub.content
    assert f"{TINY}: 100%" in got.stderr


def test_get_without_an_answer_names_every_way_in_one_line(environment, online):
    for unreachable in (environment, {**online, "HF_ENDPOINT": "http://127.0.0.1:9"}):
        line = message(weights(unreachable, "get"))
        assert "sam2.1_hiera_tiny.pt cannot be downloaded" in line
        for way in ("sam2_checkpoint=FILE", "AUTOSAM2_SAM2_WEIGHTS", "autosam2 weights get", "=random"):
            assert way in line
    assert "404" in message(weights(online, "get", "sam2.1-hiera-large"))


def test_get_of_an_unknown_model_names_the_known_ones():
    assert ", ".join(SAM2_MODELS) in message(weights_here("get", "sam2.1-hiera-huge"))


def test_where_configuration_then_environment(tiny, tmp_path):
    named = {"AUTOSAM2_SAM2_WEIGHTS": str(tmp_path)}
    mine = tmp_path / "mine.pt"
    mine.touch()
    configured = weights_here("where", f"sam2_checkpoint={mine}", **named)
    assert (configured.stdout, configured.stderr) == (f"{mine}\n", "From: sam2_checkpoint\n")
    found = weights_here("where", **named)
    assert found.stdout == f"{tiny}\n"
    assert found.stderr == "From: environment variable AUTOSAM2_SAM2_WEIGHTS\n"
    assert f"{tmp_path / 'sam2_hiera_large.pt'} is not a file" in message(
        weights_here("where", "--model", "sam2-hiera-large", **named)
    )


def test_where_nowhere_names_every_way(environment):
    for arguments in ([], ["sam2_checkpoint=random"]):
        line = message(weights(environment, "where", *arguments))
        assert "No file on this machine" in line
        for way in ("sam2_checkpoint=FILE", "AUTOSAM2_SAM2_WEIGHTS", TINY, "autosam2 weights get", "=random"):
            assert way in line


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("layout", "model", "tensors", "parameters"),
    [
        ("sam2.1_hiera_tiny.pt", "sam2.1-hiera-tiny", 471, "38,962,498"),
        ("sam2.1_hiera_small.pt", "sam2.1-hiera-small", 519, "46,060,354"),
        ("medical_sam2_pretrain.pth", "sam2-hiera-tiny", 468, "38,945,986"),
    ],
)
def test_verify_recognises_the_real_layouts(tmp_path, layout, model, tensors, parameters):
    if not (CHECKPOINT_LAYOUTS / f"{layout}.json").is_file():
        pytest.skip(f"{layout}.json is not beside the project")
    shapes = json.loads((CHECKPOINT_LAYOUTS / f"{layout}.json").read_text())
    file = tmp_path / layout
    torch.save({"model": {name: torch.full((1,), 0.5).expand(shape) for name, shape in shapes.items()}}, file)
    checked = weights_here("verify", file)
    assert checked.exit_code == 0, checked.output
    assert checked.stdout.startswith(f"{file} fits {model}: {tensors} tensors, {parameters} parameters.\n")


def test_verify_checks_what_a_training_would_use(tiny):
    checked = weights_here("verify", AUTOSAM2_SAM2_WEIGHTS=str(tiny))
    assert checked.exit_code == 0, checked.output
    assert f"{tiny} fits sam2.1-hiera-tiny: 471 tensors" in checked.stdout
    line = message(weights_here("verify", "--model", "sam2.1-hiera-small", AUTOSAM2_SAM2_WEIGHTS=str(tiny)))
    assert "set sam2_model to sam2.1-hiera-tiny" in line


def test_verify_says_that_the_video_memory_is_missing(tmp_path, of_tiny):
    used = ("image_encoder", "sam_prompt_encoder", "sam_mask_decoder", "no_mem_embed")
    file = tmp_path / "single.pt"
    torch.save({"model": {name: value for name, value in of_tiny.items() if name.startswith(used)}}, file)
    checked = weights_here("verify", file)
    assert checked.exit_code == 0, checked.output
    assert "fits sam2.1-hiera-tiny: 311 tensors, 31,440,721 parameters" in checked.stdout
    assert "memory for videos is not in it" in checked.stdout


def test_verify_refuses_another_size(environment, tmp_path):
    file = tmp_path / "small.pt"
    torch.save({"model": entries("configs/sam2.1/sam2.1_hiera_s.yaml")}, file)
    line = message(weights(environment, "verify", file, "--model", "sam2.1-hiera-tiny"))
    assert f"{file} does not fit the SAM2 model: expected 311 entries, found 359" in line
    assert re.search(r"image_encoder\.trunk\S+ \(expected \[\d.*\], found \[\d.*\]\)", line)
    assert "set sam2_model to sam2.1-hiera-small" in line


def test_verify_refuses_a_truncated_file(environment, tiny):
    half = tiny.read_bytes()[: tiny.stat().st_size // 2]
    tiny.write_bytes(half)
    line = message(weights(environment, "verify", tiny))
    assert f"{tiny} is refused: found a truncated or damaged file of {len(half):,} bytes. Expected" in line


def test_verify_refuses_a_pickle_with_code_and_does_not_run_it(environment, tmp_path):
    class Code:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    for name, write in (("zip.pt", torch.save), ("plain.pkl", lambda x, file: file.write_bytes(pickle.dumps(x)))):
        write({"model": {"image_encoder": Code()}}, tmp_path / name)
        line = message(weights(environment, "verify", tmp_path / name))
        assert f"{name} is refused: found a pickle that could run code" in line
        assert "Expected a SAM2 checkpoint" in line
        assert not (tmp_path / "ran").exists()


def test_verify_refuses_missing_keys(environment, tiny, of_tiny):
    gone = "sam_mask_decoder.iou_token.weight"
    torch.save({"model": {name: value for name, value in of_tiny.items() if name != gone}}, tiny)
    line = message(weights(environment, "verify", tiny))
    assert f"{tiny} does not fit the SAM2 model: expected 311 entries, found 310; 1 missing: {gone}." in line


def test_verify_refuses_surplus_keys(environment, tiny, of_tiny):
    torch.save({"model": {**of_tiny, "adapter.weight": torch.zeros(1)}}, tiny)
    line = message(weights(environment, "verify", tiny))
    assert "expected 311 entries, found 312; 1 unknown: adapter.weight." in line


def accepted(file: Path, *options: str) -> str:
    """What `verify` says of a file that a training of SAM2 in single slices loads as well."""
    checked = weights_here("verify", file, *options)
    assert checked.exit_code == 0, checked.output
    model = options[-1] if options else "sam2.1-hiera-tiny"
    read = AutoSAM2Config(sam2_checkpoint=str(file), sam2_image_size=64).updated({"sam2_model": model})
    AutoSAM2(num_classes=2, config=read).load_sam2_weights()
    return checked.stdout


def test_what_lacks_some_of_the_video_memory_serves_single_slices(tiny, of_tiny):
    for gone in ("maskmem_tpos_enc", "no_obj_embed_spatial"):
        torch.save({"model": {name: value for name, value in of_tiny.items() if name != gone}}, tiny)
        said = accepted(tiny)
        assert "fits sam2.1-hiera-tiny: 470 tensors, 31,440,721 parameters." in said
        assert "It serves propagation=linear, and not memory: " in said
        assert f"1 missing: {gone}." in said
    torch.save({"model": {**of_tiny, "memory_encoder.more": torch.zeros(1)}}, tiny)
    assert "1 unknown: memory_encoder.more." in accepted(tiny)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module."])
def test_prefixes_and_bare_names_are_recognised_and_named(tiny, of_tiny, bare, prefix):
    state = {prefix + name: value for name, value in of_tiny.items()}
    torch.save(state if bare else {"model": state}, tiny)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a training says so as well: test_weights.py
        said = accepted(tiny)
    assert "fits sam2.1-hiera-tiny: 471 tensors, 38,962,498 parameters." in said
    assert (f"the prefix {prefix} of all names is left out" in said) == bool(prefix)
    assert ("names and tensors without model around them" in said) == bare


def test_a_prefix_of_some_names_is_none(tiny, of_tiny):
    first, *_ = of_tiny
    torch.save({"model": {f"module.{name}" if name != first else name: value for name, value in of_tiny.items()}}, tiny)
    message(weights_here("verify", tiny))


def test_verify_refuses_another_shape(tiny, of_tiny):
    torch.save({"model": {**of_tiny, "no_mem_embed": torch.zeros(1, 1, 128)}}, tiny)
    assert "no_mem_embed (expected [1, 1, 256], found [1, 1, 128])" in message(weights_here("verify", tiny))


def test_sam2_serves_single_slices_of_sam2_1(tmp_path):
    file = tmp_path / "sam2_hiera_tiny.pt"
    torch.save({"model": entries("configs/sam2/sam2_hiera_t.yaml")}, file)
    said = accepted(file, "--model", "sam2.1-hiera-tiny")
    assert "It serves propagation=linear, and not memory: " in said
    assert "3 missing: no_obj_embed_spatial" in said
    assert "set sam2_model to sam2-hiera-tiny" in said


VALUES = {
    "NaN": ("not finite", lambda tensor: tensor.clone().index_fill_(0, torch.tensor(0), torch.nan)),
    "infinity": ("not finite", lambda tensor: tensor.clone().fill_(-torch.inf)),
    "zeros": ("all zeros", torch.zeros_like),
    "integers": ("int64", lambda tensor: tensor.long()),
    "booleans": ("bool", lambda tensor: tensor.bool()),
    "complex numbers": ("complex64", lambda tensor: tensor.to(torch.complex64)),
    "a sparse tensor": ("sparse_coo", lambda tensor: tensor.to_sparse()),
    "compressed rows": ("sparse_csr", lambda tensor: tensor.to_sparse_csr()),
    "a meta tensor": ("meta", lambda tensor: tensor.to("meta")),
    "quantised numbers": ("qint8", lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)),
    "eight bits": ("float8", lambda tensor: tensor.to(torch.float8_e4m3fn)),
}


@pytest.mark.filterwarnings("ignore:.*(beta state|quantize)")
@pytest.mark.parametrize("kind", VALUES)
def test_what_is_no_ordinary_number_is_refused_by_name_before_a_training(tiny, of_tiny, kind):
    found, change = VALUES[kind]
    name = "sam_mask_decoder.iou_token.weight"
    torch.save({"model": {**of_tiny, name: change(of_tiny[name].clone())}}, tiny)
    line = message(weights_here("verify", tiny))
    assert f"{tiny} does not fit the SAM2 model" in line
    assert name in line
    assert found in line
    config = AutoSAM2Config(sam2_checkpoint=str(tiny), sam2_image_size=64)
    with pytest.raises(WeightsError) as error:
        AutoSAM2(num_classes=2, config=config).load_sam2_weights()
    assert f"Error: {error.value}" == line


def test_a_bias_of_zeros_and_other_precisions_are_taken(tiny, of_tiny):
    changed = {
        name: torch.zeros_like(value) if name.endswith("bias") else value.to(torch.bfloat16)
        for name, value in of_tiny.items()
    }
    torch.save({"model": changed}, tiny)
    accepted(tiny)


def test_an_archive_that_unpacks_to_more_than_it_is_takes_no_memory(environment, tiny, of_tiny):
    """9 MB of it, were it not refused, are 2.6 GB."""
    torch.save({"model": {**of_tiny, "more": torch.zeros(2**26)}}, tiny)
    packed = tiny.with_name("packed.pt")
    with zipfile.ZipFile(tiny) as plain, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in plain.infolist():
            archive.writestr(entry.filename, plain.read(entry))
    assert packed.stat().st_size < 2**20
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30)); {COMMAND_LINE}"
    refused = subprocess.run(
        [sys.executable, "-c", limited, "weights", "verify", packed], env=environment, capture_output=True, text=True
    )
    assert f"{packed} is refused: found an archive that would unpack to " in message(refused)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"state_dict": {}, "epoch": 3}, "found the keys state_dict, epoch"),
        ([torch.zeros(1)], "found a list"),
        ({"model": {"module.weight": torch.zeros(1)}}, "found 1 entries without the image encoder"),
    ],
)
def test_verify_refuses_another_layout(tmp_path, content, found):
    torch.save(content, tmp_path / "other.pt")
    line = message(weights_here("verify", tmp_path / "other.pt"))
    assert found in line
    assert "Expected" in line


def test_verify_refuses_what_is_no_checkpoint(tmp_path):
    file = tmp_path / "page.pt"
    file.write_text("<!doctype html><title>Not found</title>")
    assert "starting with b'<!doctype html><'" in message(weights_here("verify", file))
    assert f"{tmp_path / 'none.pt'} does not exist" in message(weights_here("verify", tmp_path / "none.pt"))
    assert "is a folder, where a file has to be" in message(weights_here("verify", tmp_path))
