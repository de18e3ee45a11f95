import csv
import io

import pytest

from nnunet_autosam2.errors import DatasetError, listed
from nnunet_autosam2.support.columns import aligned
from nnunet_autosam2.support.text import LINE, LINES, VALUE, csv_cell, printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ödem 脳 2.5 %", "Ödem 脳 2.5 %"),
        ("\x1b[2K\x1b[1A\rSAFE", r"\x1b[2K\x1b[1A\rSAFE"),
        ("a\nError: b\tc\x00\x7f\x9b2J", r"a\nError: b\tc\x00\x7f\x9b2J"),
        ("\u202egnp.exe\u2028\u200b", r"\u202egnp.exe\u2028\u200b"),
        ("caf\udce9", r"caf\xe9"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, expected: str):
    assert printable(text) == expected
    expected.encode()
    assert str(DatasetError(text)).split("\n") == [printable(line) for line in text.split("\n")]
    assert aligned([["name"], [text]]) == f"name\n{expected}"
    assert listed([text]) == expected


def test_what_is_too_long_loses_its_middle():
    shown = printable("a" + "b" * 10_000_000 + "c")
    assert len(shown) < VALUE + 40
    assert (shown[0], shown[-1]) == ("a", "c")
    assert "9,999,702 characters" in shown
    message = str(DatasetError("\n".join(["x" * 10_000_000, *map(str, range(50_000)), "remedy"])))
    assert len(message) < (LINES + 1) * 10 + LINE
    assert message.endswith("\nremedy")


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1+cmd|' /C calc'!A0", "@SUM(A1)", " =1", "\t=1", "\r=1", "＝1"])
def test_a_spreadsheet_does_not_compute_a_name(name: str):
    table = io.StringIO()
    csv.writer(table).writerow([csv_cell(name), csv_cell(-0.5), csv_cell(None), csv_cell("BraTS-GLI-1")])
    (row,) = csv.reader(io.StringIO(table.getvalue()))
    assert row[0][0] in "'\\"
    assert row[1:] == ["-0.5", "", "BraTS-GLI-1"]
