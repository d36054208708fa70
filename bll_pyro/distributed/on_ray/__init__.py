"""Extraction, scoring and sums of rows on Ray Data: many machines, each row once, and nothing lost with a process or a machine.

Ray is imported when one of the functions is called. How it works is in decision 0034.
"""
