"""Tries an installed xentrs, by the Python of an environment that has it and NumPy alone."""

import importlib.metadata
import importlib.util
import platform
import sys

import numpy as np

import xentrs

# The loss of each function at logits (2, 1, 0.1) and class 0, by mpmath.
LOSS = 0.4170300162778335
GRAD = [-0.3409988607, 0.2424329707, 0.0985658900]

for dtype in (np.float16, np.float32, np.float64):
    logits = np.array([[2.0, 1.0, 0.1]], dtype=dtype)
    loss, grad = xentrs.cross_entropy_with_grad(logits, [0])
    tolerance = 2e-3 if dtype == np.float16 else 1e-6
    np.testing.assert_allclose(float(loss), LOSS, rtol=tolerance)
    np.testing.assert_allclose(grad[0].astype(float), GRAD, rtol=tolerance)
    assert grad.dtype == dtype

# Threads change no bit.
rng = np.random.default_rng(0)
logits = rng.normal(size=(2000, 1000)).astype(np.float32)
target = rng.integers(0, 1000, 2000)
results = []
for threads in (1, 2, 3):
    xentrs.set_num_threads(threads)
    results.append(xentrs.cross_entropy_with_grad(logits, target))
exact = logits.astype(float)
exact = np.log(np.exp(exact).sum(axis=1)) - exact[np.arange(2000), target]
np.testing.assert_allclose(results[0][0], exact.mean(), rtol=1e-6)
for loss, grad in results[1:]:
    assert loss == results[0][0]
    assert np.array_equal(grad, results[0][1])

meter = xentrs.CrossEntropyMeter()
meter.update(logits, target)
np.testing.assert_allclose(meter.compute().loss, exact.mean(), rtol=1e-6)

try:
    xentrs.cross_entropy(logits, target[:-1])
except ValueError as error:
    message = str(error)
else:
    message = "no error"
assert "1999" in message, f"a target of the wrong length: {message}"

assert xentrs.__version__ == importlib.metadata.version("xentrs")
assert "torch" not in sys.modules
level = xentrs.show_config(mode="dicts")["simd"]["level"]
print(
    f"{platform.python_implementation()} {platform.python_version()}, NumPy {np.__version__}, "
    f"{platform.machine()}, {level}"
)
