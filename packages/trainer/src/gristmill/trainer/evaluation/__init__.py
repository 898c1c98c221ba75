"""How good a model is: held-out documents, and lm-evaluation-harness's tasks."""
