"""The papers' comparisons, reproduced on your own data."""
