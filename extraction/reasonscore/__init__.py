"""ReasonScore of SAE features: from rows of text to sums of activations, and from the sums to scores."""
