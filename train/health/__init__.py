"""Does it train on what it should? Guards around every step, spikes, first batches, and where a bad value was born."""
