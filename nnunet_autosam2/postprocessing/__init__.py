"""Segmentations without what is too small to be believed, by sizes that a cross-validation has shown to pay."""
