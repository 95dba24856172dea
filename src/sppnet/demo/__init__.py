"""Demo of the embedded network, with an HTML report."""
