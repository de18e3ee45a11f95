"""Functions of nnU-Net that do more for an AutoSAM2 network, where nnU-Net has no place for it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from nnunet_autosam2.architectures.autosam2 import AutoSAM2


def put_around(owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]], without: str) -> None:
    """Puts `wrap(function)` in the place of the function `name` of a class or module; once, however often it is called.

    Args:
        without: what to expect without it, for the warning where there is no such function.
    """
    function = getattr(owner, name, None)
    if function is None:
        warnings.warn(f"This version of nnU-Net has no {name}, as was known: {without}.", stacklevel=3)
    elif not hasattr(function, "without_autosam2"):
        wrapped: Any = functools.wraps(function)(wrap(function))
        wrapped.without_autosam2 = function
        setattr(owner, name, wrapped)


def autosam2_of(network: Any) -> AutoSAM2 | None:
    """The AutoSAM2 network in a distributed or compiled one; None: it is another."""
    while network is not None and not isinstance(network, AutoSAM2):
        network = getattr(network, "module", getattr(network, "_orig_mod", None))
    return network


def predicting_autosam2_of(network: Any) -> AutoSAM2 | None:
    """The AutoSAM2 network in another that predicts with SAM2; None: it is none, or does not."""
    autosam2 = autosam2_of(network)
    if autosam2 is None or autosam2.training or autosam2.deep_supervision or not autosam2.config.uses_sam2:
        return None
    return autosam2
