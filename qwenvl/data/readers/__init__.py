"""Annotation files in the form their authors published, read into records: one file per family of data sets."""
