"""One file for each thing that `python mars.py` does, and what they share."""
