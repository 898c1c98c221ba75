"""Evaluation items in training text: sets of items, an index of their n-grams, the search, and what it found."""
