"""Configuration: what can be set, what it means, and how a name on the command line becomes a checked config."""
