"""Scores for documents: from a heads/ folder on its backbone, or from other people's classifiers."""
