"""Where nnU-Net finds the trainers of AutoSAM2, without loading them for anyone who asks for another trainer.

nnU-Net imports every module that it walks past and asks each with `hasattr` for the class. This one answers
from `nnunet_autosam2.trainers` on demand (PEP 562), so that other trainers neither wait for this plugin nor
fail with it. In an editable install this folder is linked there; `nnUNet_extTrainer=<this folder>` serves it too.
"""

import importlib

PREFIX = "nnUNetTrainerAutoSAM2"


def __getattr__(name: str):
    if not name.startswith(PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        trainers = importlib.import_module("nnunet_autosam2.trainers")
    except AttributeError as error:
        # `hasattr` would take it for an answer, and the user would read "not found" instead of the cause.
        raise ImportError(f"nnunet_autosam2.trainers cannot be imported: {error}") from error
    return getattr(trainers, name)
