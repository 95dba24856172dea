"""Results, tiling, memory limits and drawing that several tasks share."""
