"""Text from files and their names, made fit for a terminal and a table: it neither acts there nor floods them."""

from __future__ import annotations

VALUE = 300
"""Characters of a name or a value that are shown"""
LINE = 2000
"""Characters of a line of a message that are shown"""
LINES = 5000
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""Starts of what spreadsheets compute, the wide forms of Japanese ones as well"""


def printable(value: object, longest: int = VALUE) -> str:
    """Make one line fit for a terminal. Escaped as in Python is what a terminal would obey, what turns the direction of
    reading, and bytes that are no text; of what is too long, the middle is left out.
    """
    text = str(value)
    if (surplus := len(text) - longest) > 0:
        half = longest // 2
        text = f"{text[:half]} … ({surplus:,} characters) … {text[len(text) - half :]}"
    return text if text.isprintable() else "".join(map(_escaped, text))


def printable_lines(text: str) -> str:
    """Make each line of a message fit for a terminal."""
    lines = text.split("\n")
    if (surplus := len(lines) - LINES) > 0:
        lines[LINES // 2 : -LINES // 2] = [f"… ({surplus:,} lines) …"]
    return "\n".join(printable(line, LINE) for line in lines)


def csv_cell(value: object) -> object:
    """Make a spreadsheet show text as text, after an apostrophe where it would compute it. Numbers stay numbers."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip().startswith(FORMULA) else text


def _escaped(character: str) -> str:
    code = ord(character)
    if character.isprintable():
        return character
    if 0xDC80 <= code <= 0xDCFF:  # Python's stand-in for a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
