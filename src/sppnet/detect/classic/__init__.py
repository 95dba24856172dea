"""The methods of the papers: SPP-net, R-CNN and Fast R-CNN on the windows of selective search."""
