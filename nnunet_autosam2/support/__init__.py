"""Ground that the other rooms stand on: files that appear whole or not at all, checkpoints, plans, JSON, and text."""
