"""Recipes: files to copy and edit. `python mars.py NAME.TAG.TAG` calls mcfg(tags) of cfgops/NAME.py."""
