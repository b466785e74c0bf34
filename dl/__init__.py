"""From files to batches: find a data set, check it, read it, augment it, make batches.

`formats/discover.py` finds a data set, `check.py` reports its errors, `loader.py` makes batches. A box is xyxy in pixel
edges: a box around a whole image of W x H pixels is (0, 0, W, H).
"""
