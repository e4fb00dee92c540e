"""OCR pages with exact quads (paper Appendix A.4): pages in the manner of SynthDoG, PDF pages, HTML pages."""
