"""The scorer's work: its heads, their thresholds, the scores that they gave and the oracle that they learnt from."""

ALL = "(all)"  # the group of calibration.json that a source without its own falls back to
