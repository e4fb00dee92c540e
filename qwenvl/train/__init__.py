"""Training: the stages of the paper as values (3.1-3.3, Table 8) and the one loop that runs them."""
