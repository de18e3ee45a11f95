"""Pictures of what happens inside a network on the slices of a case: `autosam2 show`."""
