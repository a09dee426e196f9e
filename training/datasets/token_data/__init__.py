"""How documents become rows of tokens: what the scripts of training/datasets share."""
