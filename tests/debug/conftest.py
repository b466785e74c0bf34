"""The fixtures of small trainings."""

from training_fixtures import (  # noqa: F401
    _narrow,
    no_checkpoints,
    squares,
    squares_config,
    trained_teacher,
)
