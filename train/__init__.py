"""From raw maps to better weights: assignment, losses, optimization, checkpoints and the loop."""
