"""Probe and judge: trained on grades, measured against baselines, given thresholds, kept in a heads/ folder."""
