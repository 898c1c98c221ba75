"""Datasets elsewhere: addresses, the stores behind them, and what of them is here. `transfer` is the way in."""
