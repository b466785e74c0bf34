"""Draws the scenes of the demo data set; `scenes/dataset.py` makes data sets of them.

`outlines` and `aircraft` define the twenty aircraft types, and `textures` paints one aircraft. `airfields` makes random
airfields, and `scenery` paints them, with roofs, vehicles, trees and clouds. `compose` combines everything and computes
the boxes.
"""
