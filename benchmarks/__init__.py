"""Benchmarks of bll_pyro beside plain Pyro, a hand-written torch loop, laplace-torch and vbll (see README.md)."""
