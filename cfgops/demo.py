"""Twenty types of aircraft from above, in scenes that Mars draws: needs no data, no GPU and ten minutes."""

from config import mconfig

TAGS = {
    "full": "all twenty types from random weights",
    "assignment": "train the assignment's way instead of today's",
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
        mcfg.maxEpoch = 30  # at most; two cores with bfloat16 do some 24 in five minutes
        mcfg.trainMinutes = 5  # other machines get fewer epochs, not a longer wait

    if "assignment" in tags:
        mcfg.training = "assignment"
        mcfg.lossReduction = "sum"

    return mcfg
