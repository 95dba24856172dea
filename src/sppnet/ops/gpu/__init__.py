"""GPU kernels of the pooling operator, in Triton."""
