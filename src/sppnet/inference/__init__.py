"""Results, tiling, memory limits and drawing shared by several tasks."""
