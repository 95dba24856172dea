"""Detectors of the papers: SPP-net, R-CNN and Fast R-CNN on proposals of selective search."""
