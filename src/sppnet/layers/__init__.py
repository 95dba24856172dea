"""Standalone modules: SPP, ASPP, PPM and YOLO's SPP blocks."""
