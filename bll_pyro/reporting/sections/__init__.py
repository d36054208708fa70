"""Sections of a report, one a file: each is a function of the material, and gives None where it does not apply."""
