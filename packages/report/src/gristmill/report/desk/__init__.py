"""The policy desk: what other thresholds would keep, from what a run measured."""
