"""Segmentations against their truth, by the metrics of the BraTS challenges."""
