"""The toy world: images simple enough to learn to the end on a CPU, and all that can be asked about them."""
