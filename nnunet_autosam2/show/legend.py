"""Colours and names of labels and regions, the same in all pictures of a data set."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field

from nnunet_autosam2.dataset_conversion.regions import REGIONS, TABLE_ORDER

Channel = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Channel, Channel, Channel]
"""Red, green, blue"""
OEDEMA: Colour = (86, 180, 233)
CORE: Colour = (240, 90, 40)
ENHANCING: Colour = (240, 228, 66)
FURTHER: tuple[Colour, ...] = ((0, 158, 115), (204, 121, 167), (0, 114, 178), (230, 159, 0))
"""Told apart by colour-blind readers, too, like the three above; beyond, hues far from the one before"""
UNKNOWN: Colour = (150, 150, 150)
TISSUES = {"ET": ("enhancing tumour", ENHANCING), "TC": ("necrosis, not enhancing", CORE), "WT": ("oedema", OEDEMA)}
"""Region of BraTS → what it has and the next one has not"""
BRATS_NAMES = {region.name for region in REGIONS.values()}


class LegendEntry(BaseModel):
    value: int = Field(ge=1)
    """Label in label maps"""
    title: str
    """Name, as in "enhancing tumour (ET, TC, WT)" """
    colour: Colour


def legend(dataset_json: Mapping[str, Any]) -> list[LegendEntry]:
    """Names and colours of the labels that nnU-Net's `dataset.json` defines, in their order, without background."""
    regions = _regions(dataset_json)
    is_brats = regions.keys() >= BRATS_NAMES
    values = sorted({label for labels in regions.values() for label in labels} - {0})
    describe = _tissue if is_brats else _innermost
    described = [describe(value, regions) for value in values]
    further = iter(_colours(len(values), is_brats))
    return [
        LegendEntry(value=value, title=title, colour=colour or next(further))
        for value, (title, colour) in zip(values, described, strict=True)
    ]


def region_colours(dataset_json: Mapping[str, Any]) -> dict[str, Colour]:
    """Region → colour of the label that nnU-Net writes for it."""
    colours = {label.value: label.colour for label in legend(dataset_json)}
    regions = _regions(dataset_json)
    written = dataset_json.get("regions_class_order") or [labels[0] for labels in regions.values()]
    return {name: colours.get(value, UNKNOWN) for name, value in zip(regions, written, strict=False)}


def _regions(dataset_json: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(np.atleast_1d(labels).tolist())
        for name, labels in dataset_json["labels"].items()
        if name not in ("background", "ignore")
    }


def _tissue(value: int, regions: Mapping[str, tuple[int, ...]]) -> tuple[str, Colour | None]:
    """Tissue of BraTS, by the regions that it lies in: what a number means differs from release to release."""
    within = [short for short in TABLE_ORDER if value in regions[REGIONS[short].name]]
    own = [name for name, labels in regions.items() if labels == (value,) and name not in BRATS_NAMES]
    colour: Colour | None = None
    if own:
        title = own[0]
    elif within:
        title, colour = TISSUES[within[0]]
    else:
        title = _innermost(value, regions)[0]
    return f"{title} ({', '.join(within)})" if within else title, colour


def _innermost(value: int, regions: Mapping[str, tuple[int, ...]]) -> tuple[str, None]:
    """The smallest region that it lies in, and then the others."""
    names = sorted((name for name in regions if value in regions[name]), key=lambda name: len(regions[name]))
    return f"{names[0]} ({', '.join(names[1:])})" if names[1:] else names[0], None


def _colours(number: int, taken: bool) -> list[Colour]:
    """`number` or more, without the first three if they are `taken`."""
    colours = [*FURTHER] if taken else [OEDEMA, CORE, ENHANCING, *FURTHER]
    for step in range(number - len(colours)):
        red, green, blue = colorsys.hsv_to_rgb(
            0.618034 * step % 1, 0.55 + 0.35 * (step % 2), 0.9 - 0.2 * (step % 3 == 2)
        )
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours
