"""Validation of data sets (`sppnet check`)."""
