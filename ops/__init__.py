"""Shared by all packages: boxes, anchor points, batches, precision, probes, safe arithmetic, files and logs."""
