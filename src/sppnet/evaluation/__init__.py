"""Metrics and figures that several tasks share."""
