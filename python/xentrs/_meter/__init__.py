"""Statistics of a classifier's predictions, summed over batches without rounding.

    meter      `CrossEntropyMeter`, the public class
    arguments  options and samples, checked
    batches    kernels turn samples into a few numbers each, block by block
    sums       these numbers added up exactly
    histogram  weights by bins of a logarithmic scale, of which quantiles are read
    results    the sums become what `compute` returns
    states     options and sums as arrays, and back

Each imports from those below it only; `meter` from all.
"""

from xentrs._meter.meter import CrossEntropyMeter
from xentrs._meter.results import MeterResult, PerClass, Reliability

__all__ = ["CrossEntropyMeter", "MeterResult", "PerClass", "Reliability"]

for _public in (CrossEntropyMeter, MeterResult, PerClass, Reliability):
    _public.__module__ = "xentrs"  # where people find it
