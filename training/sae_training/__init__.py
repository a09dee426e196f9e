"""Training of SAEs: configuration, activations, trainer, runs with checkpoints, measurement, and the plan of a run."""
