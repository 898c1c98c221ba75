"""Training runs: their logs followed as they grow, and what a page shows of them."""
