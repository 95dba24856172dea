"""The comparisons of the papers, on the user's data."""
