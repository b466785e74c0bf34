"""`explain`: why the objects of one image were found or missed, as a table and a picture."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from commands.options import PROGRAM, Command, Parser, add_run_options, add_weights, check_weights
from commands.setup import check, find_data, load
from config.errors import UserError
from config.fields import nearest
from config.load import absolute
from config.mconfig import ModelConfig
from dl.files import DataError
from ops.files import write_atomic
from ops.log import RESULT

if TYPE_CHECKING:
    from dl.annotations import Annotation
    from dl.formats.source import DataSource

log = logging.getLogger("mars")

FOLDER = "explain"


def _add_arguments(parser: Parser) -> None:
    add_run_options(parser)
    parser.add_argument(
        "image", nargs="?", metavar="IMAGE", help="an image file of the data set, or the name of an image in it"
    )
    add_weights(parser)


def _check(args: argparse.Namespace) -> None:
    if args.cfgname is None or args.image is None:
        raise UserError(
            f"explain: CFGNAME or IMAGE is missing; write {PROGRAM} explain CFGNAME IMAGE (its file, or its name in "
            "the data set)"
        )
    check_weights(args)


def _run(args: argparse.Namespace) -> int:
    """Print a row for every object of an image of the data set, and draw it, into RUN/explain."""
    mcfg = load(args, args.settings)
    from commands.weights import as_trained, trained_model, weights_of
    from debug.explain import Limits, explain, object_table, paint_explanation
    from dl.dataset import DetectionDataset
    from dl.image_cache import FileImages
    from dl.loader import collate
    from eval.painter import file_names, write_jpeg
    from eval.predictor import Predictor
    from runs.folder import RunFolder
    from train.loss import DetectionLoss

    weights = weights_of(mcfg, args.weights)
    mcfg = find_data(args, {**as_trained(weights, args.settings), **args.settings})
    split, annotation = find_image(mcfg, args.image)
    model = trained_model(mcfg, weights)
    dataset = DetectionDataset([annotation], mcfg.inputShape)
    names = tuple(mcfg.classList or ())
    explanation = explain(
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
    table = object_table(explanation, names, model.strides)
    text = f"{annotation.image_id} of '{split}', with {weights.path}:\n{table}\n"
    write_jpeg(picture, paint_explanation(image, explanation, annotation, names))
    write_atomic(picture.with_suffix(".txt"), text)
    log.log(RESULT, "%sdrawn in %s", text, picture)
    return 0


def find_image(mcfg: ModelConfig, name_or_file: str) -> "tuple[str, Annotation]":
    """The split and the annotation of the image that a name or a file stands for.

    Raises `UserError` with the nearest name when no split has such an image.
    """
    from dl.formats.discover import locate

    source = locate(mcfg)
    for split, ids in source.splits.items():
        for image_id in ids:
            if _is_meant(name_or_file, source, image_id):
                image_only = mcfg.with_values(subsetMap={split: (source.files.get(image_id, image_id),)})
                return split, check(image_only, [split], None, quiet=True).splits[split][0]
    known = [image_id for ids in source.splits.values() for image_id in ids]
    raise UserError(
        f"{name_or_file}: no image of this name in the splits {', '.join(source.splits)} of {source.image_dir}"
        f"{nearest(name_or_file, known)}; explain needs an annotated image, predict takes any image"
    )


def _is_meant(name_or_file: str, source: "DataSource", image_id: str) -> bool:
    """Is it the image's id, its id with a suffix, or its file? The disk is read only where the names agree."""
    if name_or_file in (image_id, source.files.get(image_id), f"{image_id}{Path(name_or_file).suffix}"):
        return True
    path = Path(absolute(name_or_file))
    if Path(image_id).name not in (path.stem, path.name) or not path.is_file():
        return False
    try:
        return source.reader.find_image(image_id).resolve() == path.resolve()
    except DataError:
        return False


EXPLAIN = Command(
    "explain why the objects of one image were found or missed",
    "CFGNAME IMAGE",
    _add_arguments,
    _run,
    _check,
    "A row per object shows its anchor points, its loss and its best detection; a picture is drawn into RUN/explain.",
    takes_paths=True,
)
