"""The competitors, all behind `benchmarks.method.Method`; those that are not installed are left out by name."""

from benchmarks.competitors import handwritten, laplace_torch, map_head, plain_pyro, vbll_layer
from benchmarks.method import Method

METHODS: tuple[Method, ...] = (
    *map_head.METHODS,
    *handwritten.METHODS,
    *plain_pyro.METHODS,
    *vbll_layer.METHODS,
    *laplace_torch.METHODS,
)
STEPS: tuple[Method, ...] = (*handwritten.STEPS, *map_head.STEPS, *plain_pyro.STEPS, *vbll_layer.STEPS)
REFERENCE = handwritten.METHODS[0]
