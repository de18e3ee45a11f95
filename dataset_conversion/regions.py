"""The regions that BraTS scores, defined here alone: short names, names in dataset.json, labels and order."""

from __future__ import annotations

from typing import NamedTuple

OEDEMA, CORE, ENHANCING, FOURTH = 1, 2, 3, 4
"""Labels of a converted data set. The core is what of it does not enhance; the fourth is the resection cavity or, in
children, the cystic component.
"""


class Region(NamedTuple):
    name: str
    """Name in dataset.json"""
    labels: tuple[int, ...]
    """Labels in a converted data set"""


REGIONS = {
    "WT": Region("whole tumor", (OEDEMA, CORE, ENHANCING)),
    "TC": Region("tumor core", (CORE, ENHANCING)),
    "ET": Region("enhancing tumor", (ENHANCING,)),
}
"""Short name → region, each within the one before"""
TARGET = {"GTV": Region("gross tumor volume", (1,))}
"""The one region of radiotherapy planning, with the operated site where it is at risk"""
TISSUES = (OEDEMA, CORE, ENHANCING)
"""Label of what each region has and the next one has not"""
TABLE_ORDER = tuple(reversed(REGIONS))
"""Short names in the order of columns and panels"""
