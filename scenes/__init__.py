"""What a drawn scene is made of; `scenes/dataset.py` makes data sets of it.

`outlines` and `aircraft` say what the twenty types look like, `livery` paints one; `sites` lays out airfields, `ground`
paints them, `cover` puts roofs, vehicles, trees and clouds there; `compose` puts a scene together and knows its boxes.
"""
