"""Checks before a long run, one file each; `checks` runs them in order."""
