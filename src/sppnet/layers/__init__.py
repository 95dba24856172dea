"""Modules for use in any network: SPP, ASPP, PPM and the SPP blocks of YOLO."""
