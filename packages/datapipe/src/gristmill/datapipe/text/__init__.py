"""Text into integers, once per batch, in compiled kernels."""
