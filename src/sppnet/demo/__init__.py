"""The demonstration and its report."""
