"""Where the real cases and the layouts of official checkpoints are, beside the project."""

from pathlib import Path

DATA = Path(__file__).parents[2] / "shared" / "data"
CHECKPOINT_LAYOUTS = DATA / "sam2_checkpoint_layout"
