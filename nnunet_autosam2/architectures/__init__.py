"""The network, one box of the diagram a file. Imports torch, dynamic-network-architectures and sam2 only."""
