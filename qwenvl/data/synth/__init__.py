"""Synthetic data: OCR pages and documents (paper Appendix A.4), and raw pairs to clean."""
