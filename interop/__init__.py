"""Download official weights of Ultralytics, and write checkpoints that Ultralytics can load."""
