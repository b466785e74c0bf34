"""Count the objects on each image with a trained detector: python -m examples.predict_and_count CFGNAME IMAGE...

CFGNAME is the name of a finished run, with --data as for the training if it needs that.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from config.load import load_config
from config.mconfig import ModelConfig
from dl.augment import letterbox
from dl.formats.discover import as_overrides, locate
from dl.images import read_image
from dl.loader import collate
from eval.predictor import Predictor
from model import build_model
from model.pretrained import load_weights
from ops.batch import Sample
from runs.folder import RunFolder


def main(mcfg: ModelConfig, images: Sequence[Path], min_score: float = 0.3) -> dict[str, Counter[str]]:
    """Image -> class -> number of detections with at least this score."""
    model = build_model(mcfg)
    load_weights(model, RunFolder.of(mcfg).best)
    predictor = Predictor.from_config(mcfg, model)
    class_names = list(mcfg.classList or ())
    counts = {}
    for path in images:
        canvas, placement = letterbox(read_image(path), mcfg.inputShape)
        empty = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        (found,) = predictor(collate([Sample(canvas, *empty, path.name, placement)]))
        labels = found.labels[found.scores >= min_score].tolist()
        counts[path.name] = Counter(class_names[label] for label in labels)
        print(path.name, *(f"{number} {name}" for name, number in sorted(counts[path.name].items())), sep="  ")
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cfgname")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--data")
    arguments = parser.parse_args()
    mcfg = load_config(arguments.cfgname, data=arguments.data)
    main(mcfg.with_values(**as_overrides(locate(mcfg))), arguments.images)
