"""Diagnostics and benchmarks of an installation."""
