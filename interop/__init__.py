"""To and from Ultralytics: its official weights fetched, checkpoints written that it loads."""
