"""Which of two models is better, and which of two mixtures makes better ones."""
