"""MAR20: twenty types of aircraft from above, at once (full) or ten after ten (teacher, then distillation)."""

from config import mconfig
from config.errors import UserError

TAGS = {
    "full": "all twenty classes from random weights",
    "teacher": "the labels of A1 to A10 only",
    "distillation": "a student that starts from the teacher and learns A11 to A20 on the small split",
    "backbone": "start from official backbone weights, frozen for five epochs; `mars.py backbone FILE.pt` makes them",
    "assignment": "the same as distillation alone: the earlier name of what is now the default",
    "modern": "distillation with the newer losses and no frozen epochs (not tried on MAR20)",
    "ema": "evaluate and save the moving average of the weights",
}

AIRCRAFT = [f"A{number}" for number in range(1, 21)]
OLD = 10  # the teacher knows the first ten


def mcfg(tags):
    mcfg = mconfig.ModelConfig()
    mcfg.dataDir = "{root}/mar20"  # the course's layout or the official download's; --data DIR for another place
    mcfg.classList = AIRCRAFT
    mcfg.paintImages = True

    if sum(tag in tags for tag in ("full", "teacher", "distillation")) > 1:
        raise UserError("c1: full, teacher and distillation are runs of their own; keep one of these tags")

    if "full" in tags:
        # No backboneFreezeEpochs: a frozen backbone with random weights teaches the head to read noise.
        mcfg.maxEpoch = 200

    if "teacher" in tags or "distillation" in tags:
        mcfg.baseClasses = AIRCRAFT[:OLD]

    if "teacher" in tags:
        mcfg.maxEpoch = 200
        mcfg.trainSelectedClasses = mconfig.base_names(mcfg)

    if "distillation" in tags:
        mcfg.modelName = "distillation"
        mcfg.backboneFreezeEpochs = range(5)
        mcfg.teacherModelFile = "{root}/c1.{phase}.teacher"
        mcfg.checkpointModelFile = mcfg.teacherModelFile
        mcfg.maxEpoch = 100
        mcfg.trainSplitName = "small"
        mcfg.epochValidation = False

    ways = [tag for tag in ("modern", "assignment") if tag in tags]
    if ways and ("distillation" not in tags or len(ways) > 1):
        raise UserError("c1: modern and assignment are two ways to distil: take one of them, with the tag distillation")
    if "modern" in ways:
        mcfg.distilling = "modern"
        mcfg.backboneFreezeEpochs = ()

    if "backbone" in tags:
        if "distillation" in tags:
            raise UserError("c1: a student starts from its teacher, not from a backbone; keep one of these tags")
        mcfg.pretrainedBackboneUrl = "file://{resources}/pretrained/backbone/backbone_{phase}.pth"
        mcfg.backboneFreezeEpochs = range(5)
        mcfg.maxEpoch = 120

    if "ema" in tags:
        mcfg.useEMA = True

    return mcfg
