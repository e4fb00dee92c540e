"""Documents for training (paper 3.1-3.3): out of shards, in an order named by a seed, into packed rows."""
