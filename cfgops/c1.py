"""MAR20: twenty types of aircraft from above, all at once (full) or in two halves (teacher, distillation)."""

from config import mconfig
from config.errors import UserError

TAGS = {
    "full": "all twenty classes from random weights",
    "teacher": "the labels of A1 to A10 only",
    "distillation": "a student that starts from the teacher's weights and learns A11 to A20 on the split 'small'",
    "backbone": "start from an official backbone, frozen for five epochs; `mars.py backbone FILE.pt` writes its file",
    "drawn": "start from the weights of Mars, which were trained on drawn images only (nano)",
    "assignment": "the same as distillation alone; kept for older commands",
    "modern": "distillation with newer losses, without frozen epochs (not tested on MAR20)",
    "ema": "evaluate and save the exponential moving average (EMA) of the weights",
}

AIRCRAFT = [f"A{number}" for number in range(1, 21)]
NUM_BASE = 10  # the teacher is trained on the first ten


def mcfg(tags):
    mcfg = mconfig.ModelConfig()
    mcfg.dataDir = "{root}/mar20"  # in the layout of the course or of the official download; --data DIR: another place
    mcfg.classList = AIRCRAFT
    mcfg.paintImages = True

    if sum(tag in tags for tag in ("full", "teacher", "distillation")) > 1:
        raise UserError("c1: full, teacher and distillation are runs of their own; keep one of these tags")

    if "full" in tags:
        # No backboneFreezeEpochs: from a frozen backbone with random weights, the head could only learn noise.
        mcfg.maxEpoch = 200

    if "teacher" in tags or "distillation" in tags:
        mcfg.baseClasses = AIRCRAFT[:NUM_BASE]

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

    losses = [tag for tag in ("modern", "assignment") if tag in tags]
    if losses and ("distillation" not in tags or len(losses) > 1):
        raise UserError("c1: modern and assignment choose the losses: take one of them, with the tag distillation")
    if "modern" in losses:
        mcfg.distilling = "modern"
        mcfg.backboneFreezeEpochs = ()

    if "backbone" in tags:
        if "distillation" in tags:
            raise UserError("c1: a student starts from its teacher, not from a backbone; keep one of these tags")
        mcfg.pretrainedBackboneUrl = "file://{resources}/pretrained/backbone/backbone_{phase}.pth"
        mcfg.backboneFreezeEpochs = range(5)
        mcfg.maxEpoch = 120

    if "drawn" in tags:
        mconfig.start_from_drawings(mcfg)

    if "ema" in tags:
        mcfg.useEMA = True

    return mcfg
