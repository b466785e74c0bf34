"""Twenty types of aircraft from above, in scenes that Mars draws: needs no data, no GPU and ten minutes."""

from config import mconfig

TAGS = {
    "full": "all twenty types from random weights",
    "ema": "evaluate and save the moving average of the weights",
}


def mcfg(tags):
    mcfg = mconfig.ModelConfig()
    mcfg.dataDir = "{root}/demo-data"
    mcfg.drawnScenes = 600
    mcfg.classList = [f"A{number}" for number in range(1, 21)]
    mcfg.inputShape = 320
    mcfg.lossReduction = "sum"  # trained better than "mean": docs/experiments.md
    mcfg.paintImages = True

    if "full" in tags:
        mcfg.maxEpoch = 24  # what two cores do in about six minutes

    if "ema" in tags:
        mcfg.useEMA = True

    return mcfg
