"""Data: cleaning, synthesis, formats of Appendix B, packing and loading. Cleaning and synthesis need no torch."""
