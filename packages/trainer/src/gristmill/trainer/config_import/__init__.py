"""Configurations of other frameworks as ours. No torch here."""
