"""Configuration: what can be set, what it means, and how a name on the command line becomes a checked config."""

__version__ = "0.2.0"  # the only place: pyproject.toml and `python mars.py --version` read it
