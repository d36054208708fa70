"""The choice of a prior scale that is not given: criteria, folds of the rows, and the search over scales."""
