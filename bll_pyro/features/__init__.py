"""Features: data in, rows of features out.

`data` reads every form of data, `backbones` turns inputs into features, `extraction` runs a backbone once over the
data, `store` keeps the result on disk, and `standardize` measures its centre and scale.
"""
