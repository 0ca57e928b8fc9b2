"""The losses as operators and autograd functions, on whatever device the tensors are."""
