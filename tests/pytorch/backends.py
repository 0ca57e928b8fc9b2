"""Where the kernels run: on the CPU, on the CPU by Triton's interpreter, on a GPU."""

BACKENDS = ("rust", "interpreter", "cuda")
