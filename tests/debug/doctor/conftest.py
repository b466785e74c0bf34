"""The setup of a training on the squares."""

import pytest
from doctor_checks import LONG

from dl.check import check_data
from dl.label_selection import splits_to_train
from train.setup import build_training


@pytest.fixture
def setup_of(squares_config):
    """A function from overrides to the parts of a training on the squares."""

    def make(**overrides):
        mcfg = squares_config(**{**LONG, **overrides})
        return build_training(mcfg, check_data(mcfg, splits_to_train(mcfg)), errors={})

    return make
