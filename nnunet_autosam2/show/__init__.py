"""What happens inside a network on the slices of a case, as pictures: `autosam2 show`."""
