"""Metrics and figures shared by several tasks."""
