"""Cleaning of image-text pairs: the rules of Appendix A.1 as pure functions, and the engine that runs them."""
