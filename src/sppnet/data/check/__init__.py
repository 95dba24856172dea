"""Data set validation (`sppnet check`)."""
