"""Tools that examine a training: `tracer` finds the first non-finite operation, `doctor` checks a run before it starts,
`explain` shows why an object was missed. `train` never imports this package.
"""
