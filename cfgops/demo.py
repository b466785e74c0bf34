"""Twenty types of aircraft in generated images: needs no data and no GPU, about ten minutes on two cores."""

from config import mconfig
from config.errors import UserError

TAGS = {
    "full": "all twenty types; nano starts from weights that were trained on other drawn images",
    "teacher": "the labels of A1 to A10 only",
    "distillation": "a student that starts from the teacher's weights and learns A11 to A20 on a few images",
    "drawn": "start from these weights; without this tag, too, but not with the tag assignment",
    "assignment": "train with the settings of the course assignment instead of the newer ones",
}


def mcfg(tags):
    mcfg = mconfig.ModelConfig()
    mcfg.dataDir = "{root}/demo-data"
    mcfg.drawnScenes = 600
    mcfg.classList = [f"A{number}" for number in range(1, 21)]
    mcfg.inputShape = 320
    mcfg.training = "modern"  # trained better than "assignment": docs/experiments.md
    mcfg.paintImages = True

    if "full" in tags:
        mcfg.maxEpoch = 16
        mcfg.trainMinutes = 6  # a slower machine trains fewer epochs instead of longer
        mcfg.trainMinEpochs = 8  # at least, for a useful result: docs/experiments.md, section 4

    if sum(tag in tags for tag in ("full", "teacher", "distillation")) > 1:
        raise UserError("demo: full, teacher and distillation are runs of their own; keep one of these tags")

    if "teacher" in tags or "distillation" in tags:
        mcfg.baseClasses = 10

    if "teacher" in tags:
        mcfg.maxEpoch = 30
        mcfg.trainMinutes = 8
        mcfg.trainMinEpochs = 10
        mcfg.trainSelectedClasses = mconfig.base_names(mcfg)

    if "distillation" in tags:
        mcfg.modelName = "distillation"
        mcfg.distilling = "modern"
        mcfg.teacherModelFile = "{root}/demo.{phase}.teacher"
        mcfg.checkpointModelFile = mcfg.teacherModelFile
        mcfg.maxEpoch = 30
        mcfg.trainMinutes = 2
        mcfg.trainSplitName = "small"
        mcfg.smallShots = 5  # objects of each type; the list that comes with the scenes has a quarter of the images
        mcfg.epochValidation = False
        if "assignment" not in tags:
            mcfg.replayImages = 10 * len(mconfig.base_names(mcfg) or ())  # ten images of each base class
            mcfg.set_fields(mconfig.FEW_IMAGES)

    has_weights = mcfg.checkpointModelFile or mcfg.pretrained
    if "drawn" in tags or (mcfg.phase == "nano" and "assignment" not in tags and not has_weights):
        mconfig.start_from_drawings(mcfg)

    if "assignment" in tags:
        mcfg.training = mcfg.distilling = "assignment"
        mcfg.lossReduction = "sum"

    return mcfg
