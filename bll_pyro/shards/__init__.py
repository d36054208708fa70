"""Rows of features in files: places of files, shards, manifests, writers that share a store, and readers.

The class of a store is :class:`bll_pyro.Features`; here is what it is made of.
"""
