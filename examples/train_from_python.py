"""Train, evaluate and detect from Python: python -m examples.train_from_python [DATA]

DATA is a folder with images and annotations; without it, twelve small images with coloured rectangles are drawn.
"""

import sys
from pathlib import Path

from benchmarks.squares import draw_squares
from config.load import load_config
from dl.formats.discover import as_overrides, locate
from eval.evaluator import Evaluator
from model import build_model
from model.pretrained import load_weights
from train.trainer import Trainer


def main(data: Path, root: Path, epochs: int = 2, size: int = 64) -> float | None:
    """Returns the mAP50 of the test split. A second call with more epochs continues the training."""
    if not data.exists():
        draw_squares(data)
    mcfg = load_config("voc.nano.full", root=root, data=data, overrides={"inputShape": size, "maxEpoch": epochs})
    mcfg = mcfg.with_values(**as_overrides(locate(mcfg)))  # classes and splits, as they are on disk
    run = Trainer(mcfg).run()

    model = build_model(mcfg)
    load_weights(model, run.best)
    result = Evaluator(mcfg).evaluate(model, "test")
    print(f"{run.path}: mAP50 {result.map50:.3f}, mAP50-95 {result.map50_95:.3f}")
    return result.map50


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "../squares"), Path("../mars-running"))
