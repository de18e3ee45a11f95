"""Rows of text in aligned columns, for the terminal."""

from collections.abc import Iterable, Sequence

from nnunet_autosam2.support.text import printable


def aligned(rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """One line a row, the header first. With `numbers` all columns but the first are flush right."""
    table = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = [
            cell.rjust(width) if numbers and column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
