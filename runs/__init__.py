"""The folder of a run: checkpoints, their origin, the lock, starting weights, and interruption."""
