"""The flow from a model to a smaller one, and nothing else."""
