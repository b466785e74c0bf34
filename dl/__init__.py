"""From disk to a batch: find a data set, check it, read it, augment it, pad it.

`discover` says where things lie, `check` whether they are fit to train on, `loader` hands out batches.
A box is xyxy in pixels, pixel edges: a box around the whole of a W x H image is (0, 0, W, H).
"""
