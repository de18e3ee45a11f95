import re
import subprocess
import sys
from pathlib import Path

from nnunet_autosam2.config import AutoSAM2Config
from nnunet_autosam2.parameter_table import parameter_table, parameters, with_table

PAGE = Path(__file__).parents[1] / "docs" / "parameters.md"


def test_the_page_holds_the_table():
    text = PAGE.read_text(encoding="utf-8")
    assert parameter_table() in text
    assert with_table(text) == text, "run `make format`"


def test_every_parameter_has_a_row_with_values_and_meaning():
    assert [each.key for each in parameters()] == list(AutoSAM2Config.model_fields)
    for each in parameters():
        assert re.fullmatch(r".+\.", each.meaning), each.key
        assert each.values
        assert "|" not in each.meaning + each.values


def test_bounds_come_from_the_fields():
    values = {each.key: each.values for each in parameters()}
    assert values["lora_rank"] == "a whole number from 1 to 1024"
    assert values["fusion"] == "one of fixed, gated, convolutional, off"
    assert values["backbone_checkpoint"] == "null, a file or auto"


def test_the_command_writes_between_the_marks_alone(tmp_path):
    document = tmp_path / "parameters.md"
    document.write_text("# Before\n<!-- parameters -->\nold\n<!-- /parameters -->\nafter, \\1 and old\n")
    subprocess.run([sys.executable, "-m", "nnunet_autosam2.parameter_table", document], check=True)
    assert document.read_text(encoding="utf-8") == (
        f"# Before\n<!-- parameters -->\n{parameter_table()}<!-- /parameters -->\nafter, \\1 and old\n"
    )
