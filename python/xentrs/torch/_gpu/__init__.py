"""The losses of tensors on a GPU, by Triton kernels."""
