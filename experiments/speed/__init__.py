"""What AutoSAM2 costs beside nnU-Net; `python -m experiments.speed`."""
