"""The losses of xentrs for PyTorch: functions and modules in place of PyTorch's own.

Tensors on the CPU run the Rust kernels on their own memory, tensors on a GPU Triton kernels.
"""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError("xentrs.torch needs PyTorch: pip install xentrs[torch]") from error

from xentrs.torch._binary import BCEWithLogitsLoss, binary_cross_entropy_with_logits
from xentrs.torch._binary_of_probabilities import BCELoss, binary_cross_entropy
from xentrs.torch._cross_entropy import CrossEntropyLoss, cross_entropy
from xentrs.torch._focal_loss import FocalLoss, focal_loss
from xentrs.torch._generalized_cross_entropy import (
    GeneralizedCrossEntropyLoss,
    generalized_cross_entropy,
)
from xentrs.torch._js_divergence import JSDivergenceLoss, js_divergence
from xentrs.torch._kl_divergence import KLDivergenceLoss, kl_divergence
from xentrs.torch._linear import LinearCrossEntropyLoss, linear_cross_entropy
from xentrs.torch._nll_loss import NLLLoss, nll_loss
from xentrs.torch._patch import patch, unpatch
from xentrs.torch._poly_loss import PolyLoss, poly_loss
from xentrs.torch._sigmoid_focal_loss import SigmoidFocalLoss, sigmoid_focal_loss
from xentrs.torch._softmax_entropy import SoftmaxEntropyLoss, softmax_entropy
from xentrs.torch._vocab_parallel import vocab_parallel_cross_entropy

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "FocalLoss",
    "GeneralizedCrossEntropyLoss",
    "JSDivergenceLoss",
    "KLDivergenceLoss",
    "LinearCrossEntropyLoss",
    "NLLLoss",
    "PolyLoss",
    "SigmoidFocalLoss",
    "SoftmaxEntropyLoss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "focal_loss",
    "generalized_cross_entropy",
    "js_divergence",
    "kl_divergence",
    "linear_cross_entropy",
    "nll_loss",
    "patch",
    "poly_loss",
    "sigmoid_focal_loss",
    "softmax_entropy",
    "unpatch",
    "vocab_parallel_cross_entropy",
]

for _thing in (globals()[name] for name in __all__):
    _thing.__module__ = __name__  # where people find it
