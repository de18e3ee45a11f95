"""SAM2 on a batch of slices: its model, its weights, what of it trains, and how much of it runs at once."""
