"""Exact and fast cross-entropy: loss and gradient in one pass over NumPy arrays."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xentrs._config import get_num_threads, set_num_threads, show_config
from xentrs._functions import entropy, log_softmax, logsumexp, softmax
from xentrs._losses.binary_cross_entropy import (
    binary_cross_entropy,
    binary_cross_entropy_with_grad,
)
from xentrs._losses.binary_cross_entropy_with_logits import (
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_with_grad,
    binary_cross_entropy_with_logits_with_grad_hess,
)
from xentrs._losses.cross_entropy import (
    cross_entropy,
    cross_entropy_with_grad,
    cross_entropy_with_grad_hess,
)
from xentrs._losses.focal_loss import (
    focal_loss,
    focal_loss_with_grad,
    focal_loss_with_grad_hess,
)
from xentrs._losses.generalized_cross_entropy import (
    generalized_cross_entropy,
    generalized_cross_entropy_with_grad,
)
from xentrs._losses.js_divergence import js_divergence, js_divergence_with_grad
from xentrs._losses.kl_divergence import kl_divergence, kl_divergence_with_grad
from xentrs._losses.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_with_grad,
)
from xentrs._losses.log_loss import (
    log_loss,
    log_loss_with_grad,
    log_loss_with_grad_hess,
)
from xentrs._losses.nll_loss import nll_loss, nll_loss_with_grad
from xentrs._losses.poly_loss import poly_loss, poly_loss_with_grad
from xentrs._losses.sigmoid_focal_loss import (
    sigmoid_focal_loss,
    sigmoid_focal_loss_with_grad,
)
from xentrs._losses.softmax_entropy import (
    softmax_entropy,
    softmax_entropy_with_grad,
)
from xentrs._xentrs import __version__

if TYPE_CHECKING:
    from xentrs._meter import CrossEntropyMeter, MeterResult, PerClass, Reliability
    from xentrs._partial import PartialCrossEntropy

__all__ = [
    "CrossEntropyMeter",
    "MeterResult",
    "PartialCrossEntropy",
    "PerClass",
    "Reliability",
    "__version__",
    "binary_cross_entropy",
    "binary_cross_entropy_with_grad",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_with_grad",
    "binary_cross_entropy_with_logits_with_grad_hess",
    "cross_entropy",
    "cross_entropy_with_grad",
    "cross_entropy_with_grad_hess",
    "entropy",
    "focal_loss",
    "focal_loss_with_grad",
    "focal_loss_with_grad_hess",
    "generalized_cross_entropy",
    "generalized_cross_entropy_with_grad",
    "get_num_threads",
    "js_divergence",
    "js_divergence_with_grad",
    "kl_divergence",
    "kl_divergence_with_grad",
    "linear_cross_entropy",
    "linear_cross_entropy_with_grad",
    "log_loss",
    "log_loss_with_grad",
    "log_loss_with_grad_hess",
    "log_softmax",
    "logsumexp",
    "nll_loss",
    "nll_loss_with_grad",
    "poly_loss",
    "poly_loss_with_grad",
    "set_num_threads",
    "show_config",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_with_grad",
    "softmax",
    "softmax_entropy",
    "softmax_entropy_with_grad",
]

# Where the classes are that are imported on first use. Their modules take more than half of the
# time in which all of the package is imported.
_LATER = {
    "CrossEntropyMeter": "xentrs._meter",
    "MeterResult": "xentrs._meter",
    "PartialCrossEntropy": "xentrs._partial",
    "PerClass": "xentrs._meter",
    "Reliability": "xentrs._meter",
}

if not TYPE_CHECKING:  # or a type checker would take any name for one of these

    def __getattr__(name: str) -> Any:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found = getattr(import_module(_LATER[name]), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__} - {"Any", "TYPE_CHECKING", "import_module"})


for _thing in (globals()[name] for name in __all__ if name not in _LATER):
    if getattr(_thing, "__module__", __name__) != __name__:
        _thing.__module__ = __name__  # where people find it
