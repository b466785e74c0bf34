"""Any folder with images and Pascal VOC annotations: python mars.py voc.nano.full --data DIR."""

from config import mconfig
from config.errors import UserError

TAGS = {
    "full": "all classes from random weights",
    "ema": "evaluate and save the moving average of the weights",
}


def mcfg(tags):
    mcfg = mconfig.ModelConfig()
    mcfg.runName = "{cfgname}-{data}"  # one run folder for each data set
    mcfg.paintImages = True
    mcfg.lossReduction = "sum"  # trained better than "mean": docs/experiments.md

    if mcfg.dataDir is None and mcfg.imageDir is None:
        raise UserError("voc: which data? Add --data DIR, a folder with images/ and annotations/ or a VOCdevkit's")

    if "full" in tags:
        mcfg.maxEpoch = 200

    if "ema" in tags:
        mcfg.useEMA = True

    return mcfg
