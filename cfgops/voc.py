"""Any folder with images and Pascal VOC, COCO or YOLO annotations: python mars.py voc.nano.full --data DIR."""

from config import mconfig
from config.errors import UserError

TAGS = {
    "full": "all classes from random weights",
    "teacher": "the labels of baseClasses only: --set baseClasses=4 takes the first four, or name them",
    "distillation": "a student that starts from the teacher's weights and learns the other classes on split 'small'",
    "drawn": "start from the weights of Mars, which were trained on drawn images only (nano)",
    "pretrained": "start from the official weights of Ultralytics for COCO, which are downloaded once",
    "assignment": "train with the settings of the course assignment instead of the newer ones",
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

    if sum(tag in tags for tag in ("full", "teacher", "distillation")) > 1:
        raise UserError("voc: full, teacher and distillation are runs of their own; keep one of these tags")
    has_groups = "teacher" in tags or "distillation" in tags
    if has_groups and mcfg.baseClasses is None:
        raise UserError("voc: which classes does the teacher know? Add --set baseClasses=4 (the first four), or names")

    if "teacher" in tags:
        mcfg.maxEpoch = 100
        mcfg.trainSelectedClasses = mconfig.base_names(mcfg)

    if "distillation" in tags:
        mcfg.modelName = "distillation"
        mcfg.distilling = "modern"
        mcfg.teacherModelFile = "{root}/voc.{phase}.teacher-{data}"
        mcfg.checkpointModelFile = mcfg.teacherModelFile
        mcfg.maxEpoch = 60
        mcfg.trainSplitName = "small"
        mcfg.epochValidation = False
        if "assignment" not in tags:
            # Ten images of each base class: else their objects are detected as new classes (docs/experiments.md).
            mcfg.replayImages = 10 * len(mconfig.base_names(mcfg) or ())
            mcfg.set_fields(mconfig.FEW_IMAGES)

    if "drawn" in tags:
        mconfig.start_from_drawings(mcfg)

    if "pretrained" in tags:
        mcfg.pretrained = mconfig.OFFICIAL_WEIGHTS[mcfg.phase]
        mcfg.maxEpoch = 100

    if "distillation" not in tags and (mcfg.pretrained or mcfg.checkpointModelFile):
        mcfg.nominalBatch = 64  # larger steps suit weights that are trained already: docs/experiments.md

    if "assignment" in tags:
        mcfg.training = mcfg.distilling = "assignment"
        mcfg.lossReduction = "sum"  # trained better than "mean"

    return mcfg
