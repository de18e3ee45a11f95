"""Converters from public data set layouts to nnU-Net's raw layout."""
