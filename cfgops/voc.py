"""Any folder with images and Pascal VOC, COCO or YOLO annotations: python mars.py voc.nano.full --data DIR."""

from config import mconfig
from config.errors import UserError

TAGS = {
    "full": "all classes from random weights",
    "pretrained": "start from Ultralytics' official weights of COCO, which are fetched once",
    "assignment": "train the assignment's way instead of today's",
}


def mcfg(tags):
    mcfg = mconfig.ModelConfig()
    mcfg.runName = "{cfgname}-{data}"  # one run folder for each data set
    mcfg.paintImages = True
    mcfg.training = "modern"  # trained better than "assignment": docs/experiments.md

    if mcfg.dataDir is None and mcfg.imageDir is None:
        raise UserError("voc: which data? Add --data DIR, a folder with images and their VOC, COCO or YOLO annotations")

    if "full" in tags:
        mcfg.maxEpoch = 200

    if "pretrained" in tags:
        mcfg.pretrained = mconfig.OFFICIAL_WEIGHTS[mcfg.phase]
        mcfg.maxEpoch = 100

    if mcfg.pretrained or mcfg.checkpointModelFile:
        mcfg.nominalBatch = 64  # calmer steps for weights that know something; not settled yet: docs/experiments.md

    if "assignment" in tags:
        mcfg.training = "assignment"
        mcfg.lossReduction = "sum"  # trained better than "mean"

    return mcfg
