# A student's recipe after weeks of tuning: everything that people were seen to set, in the shapes they set it.
import os

import torch

from config import mconfig

projectRootDir = os.path.dirname(os.path.abspath(__file__))


def mcfg(tags):
    mcfg = mconfig.ModelConfig()
    mcfg.imageDir = os.path.join(projectRootDir, "images")
    mcfg.annotationDir = os.path.join(projectRootDir, "annotations")
    mcfg.classList = ["A{}".format(x) for x in range(1, 11)]
    mcfg.classList += ["A{}".format(x) for x in range(11, 21)]
    mcfg.subsetMap["train"] = os.path.join(projectRootDir, "train.txt")
    mcfg.suffix = ".png"
    mcfg.dcore = 4
    mcfg.seed = 1
    mcfg.cuda = torch.cuda.is_available()
    mcfg.device = torch.device("cuda:0") if "gpu" in tags else torch.device("cpu")
    mcfg.inputShape = (640, 640)
    mcfg.regMax = 16
    mcfg.talTopk = 13
    mcfg.lossWeights = (7.5, 0.5, 1.5)
    mcfg.useEMA = True
    mcfg.startEpoch = 151
    mcfg.maxEpoch = 300
    mcfg.backboneFreezeEpochs = range(151, 156)
    mcfg.batchSize = 32
    mcfg.optimizerType = "SGD"
    mcfg.optimizerMomentum = 0.9
    mcfg.optimizerWeightDecay = 1e-4
    mcfg.schedulerType = "plateau"
    mcfg.baseLearningRate = 2e-2
    mcfg.minLearningRate = mcfg.baseLearningRate * 0.01
    mcfg.pretrainedBackboneUrl = "file://{}".format(
        os.path.join(projectRootDir, "resources/pretrained/backbone", "backbone_{}.pth".format(mcfg.phase))
    )
    mcfg.testSelectedClasses = mcfg.classList[:10] + ["A11"]
    mcfg.distilEpochs = [x for x in range(0, 50)]
    mcfg.distilSelectedClasses = mcfg.classList[10:]
    mcfg.teacherClassIndexes = list(range(10))
    mcfg.temperature = 2
    mcfg.minIou = 0.5
    mcfg.paintImages = True
    mcfg.nobuf = False
    if "long" in tags or "longer" in tags:
        mcfg.maxEpoch = 400
    return mcfg
