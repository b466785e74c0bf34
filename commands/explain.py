"""`explain`: why the objects of one image were found or missed, as a table and a picture."""

import argparse
import logging
from pathlib import Path
from typing import Any

from commands.setup import check, find_data, load
from commands.weights import as_trained, trained_model, weights_of
from config.errors import UserError
from config.fields import nearest
from config.mconfig import ModelConfig
from config.places import absolute
from debug.explain.error_analysis import Limits
from debug.explain.explain import explain as explain_image
from debug.explain.explain import object_table, paint_explanation
from dl.annotations import Annotation
from dl.dataset import DetectionDataset
from dl.files import DataError
from dl.formats.discover import locate
from dl.formats.source import DataSource
from dl.image_cache import FileImages
from dl.loader import collate
from eval.painter import file_names, write_jpeg
from eval.predictor import Predictor
from ops.files import write_atomic
from ops.log import RESULT
from runs.folder import RunFolder
from train.loss import DetectionLoss

log = logging.getLogger("mars")

FOLDER = "explain"


def explain(args: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Print a row for every object of an image of the data set, and draw it, into RUN/explain."""
    mcfg = load(args, settings)
    path = weights_of(mcfg, args.weights)
    mcfg = find_data(args, mcfg, {**as_trained(path, settings), **settings})
    split, annotation = find_image(mcfg, args.paths[0])
    model = trained_model(mcfg, path)
    dataset = DetectionDataset([annotation], mcfg.inputShape)
    names = tuple(mcfg.classList or ())
    explanation = explain_image(
        Predictor.from_config(mcfg, model),
        DetectionLoss.from_config(mcfg, model),
        collate([dataset[0, 0]]),
        annotation,
        Limits(mcfg.paintConf, mcfg.minIou),
        names,
    )
    image = FileImages().read(annotation)
    folder = RunFolder.of(mcfg).path / FOLDER
    picture = folder / file_names([annotation.image_id])[annotation.image_id]
    text = f"{annotation.image_id} of '{split}', with {path}:\n{object_table(explanation, names, model.strides)}\n"
    write_jpeg(picture, paint_explanation(image, explanation, annotation, names))
    write_atomic(picture.with_suffix(".txt"), text)
    log.log(RESULT, "%sdrawn in %s", text, picture)


def find_image(mcfg: ModelConfig, word: str) -> tuple[str, Annotation]:
    """The image of the data set that is meant by its name or its file, and the split that it is in.

    Raises `UserError` when none is, with the nearest name.
    """
    source = locate(mcfg)
    for split, ids in source.splits.items():
        for image_id in ids:
            if _is_meant(word, source, image_id):
                one = mcfg.with_values(subsetMap={split: (source.files.get(image_id, image_id),)})
                return split, check(one, [split], None, quiet=True).splits[split][0]
    known = [image_id for ids in source.splits.values() for image_id in ids]
    raise UserError(
        f"{word}: no image of this name in the splits {', '.join(source.splits)} of {source.image_dir}"
        f"{nearest(word, known)}; explain needs to know its objects, predict takes any image"
    )


def _is_meant(word: str, source: DataSource, image_id: str) -> bool:
    """By its id, by its id with the file's suffix, or as a file; the disk is only asked where the names agree."""
    if word in (image_id, source.files.get(image_id), f"{image_id}{Path(word).suffix}"):
        return True
    path = Path(absolute(word))
    if Path(image_id).name not in (path.stem, path.name) or not path.is_file():
        return False
    try:
        return source.reader.find_image(image_id).resolve() == path.resolve()
    except DataError:
        return False
