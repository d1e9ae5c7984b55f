"""Training with Lightning: modules, checkpoints, and what a run needs around them."""
