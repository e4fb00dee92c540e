"""Synthetic data: OCR pages and documents (paper Appendix A.4), and the toy world of the `tiny` preset."""
