"""Measurements for heuristic rules, a file per rule family. The policy holds the thresholds."""
