"""The losses of tensors on the CPU, by the Rust kernels."""
