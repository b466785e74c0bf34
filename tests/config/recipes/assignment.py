# A recipe as people write it for the course: paths by hand, plain `if ... in tags`, no TAGS, no docstring.
import os
from config import mconfig


def mcfg(tags):
    mcfg = mconfig.ModelConfig()
    projectRootDir = "/auto/mars"
    mcfg.phase = "nano"
    mcfg.pretrainedBackboneUrl = "file://{}".format(
        os.path.join(projectRootDir, "resources/pretrained/backbone", "backbone_{}.pth".format(mcfg.phase))
    )
    mcfg.trainSplitName = "train"
    mcfg.validationSplitName = "validation"
    mcfg.testSplitName = "test"
    mcfg.imageDir = "mar20/images"
    mcfg.annotationDir = "mar20/annotations"
    mcfg.classList = ["A{}".format(x) for x in range(1, 21)]
    mcfg.subsetMap = {
        "train": "mar20/splits/v5/train.txt",
        "validation": "mar20/splits/v5/validation.txt",
        "test": "mar20/splits/v5/test.txt",
        "small": "mar20/splits/v5/small.txt",
    }

    if "full" in tags:
        mcfg.modelName = "base"
        mcfg.maxEpoch = 200
        mcfg.backboneFreezeEpochs = [x for x in range(0, 100)]

    if "teacher" in tags:
        mcfg.modelName = "base"
        mcfg.maxEpoch = 200
        mcfg.backboneFreezeEpochs = [x for x in range(0, 100)]
        mcfg.trainSelectedClasses = ["A{}".format(x) for x in range(1, 11)]

    if "distillation" in tags:
        mcfg.modelName = "distillation"
        mcfg.checkpointModelFile = "/auto/mars/c1.nano.teacher/__cache__/best_weights.pth"
        mcfg.teacherModelFile = "/auto/mars/c1.nano.teacher/__cache__/best_weights.pth"
        mcfg.distilLossWeights = (1.0, 0.05, 0.001)
        mcfg.maxEpoch = 100
        mcfg.backboneFreezeEpochs = [x for x in range(0, 25)]
        mcfg.epochValidation = False
        mcfg.trainSplitName = "small"
        mcfg.teacherClassIndexes = [x for x in range(0, 10)]

    return mcfg
