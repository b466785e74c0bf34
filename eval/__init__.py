"""From raw maps to numbers and pictures: predictions, average precision, tables, painted images and curves."""
