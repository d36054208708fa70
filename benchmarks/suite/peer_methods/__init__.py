"""The competitors that have an environment each; every module imports its package on use, inside the functions."""
