"""Markov chains over the unknowns of a layer: log density, coordinates, chains, and what they tell of themselves."""
