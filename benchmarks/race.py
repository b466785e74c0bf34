"""Mars against Ultralytics, stage by stage, in one process.

    python -m benchmarks.race [STAGE ...] [--rounds 20] [--device auto] [--precision float32]

Both systems take turns on the same batch. A ratio is the time of Ultralytics divided by the time of Mars in the same
round, so that above 1 Mars is faster; the table has the median of all rounds and the quartiles. Both use all cores and
their own layout of images. The step has no checks for non-finite values, which Mars makes besides
(`benchmarks/guard_cost.py`).
"""

import argparse
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.noise import noise_batch
from benchmarks.ultralytics_baseline import export_yolo, load_checked_data
from config.load import CODE_DIR, load_config
from dl.formats.discover import as_overrides, locate
from dl.loader import BatchLoader, build_loader
from eval.evaluator import Evaluator
from interop.ultralytics import write_checkpoint
from model import YoloModel
from model.pretrained import load_weights
from ops.batch import Batch, network_input
from ops.device import DTYPES, pick_device
from ops.text import align_columns
from scenes.dataset import make_data_set
from train.ema import ModelEMA
from train.loss import DetectionLoss

NUM_CLASSES = 20
BATCH = 16
LOSS_SIZES = ((16, 320, 8), (16, 640, 8), (8, 640, 100))  # images, pixels, boxes per image
STEP_SIZE = (8, 320, 8)
WARM_UP = 3
START_WEIGHTS = CODE_DIR / "resources" / "pretrained" / "drawn_nano.pth"

Round = Callable[[], Iterator[str] | None]  # yields the name of each stage behind it, or has only one


class Race(NamedTuple):
    """What both systems do in one round."""

    name: str
    theirs: Round
    ours: Round
    most_rounds: int = 1000

    def run(self, rounds: int, device: torch.device) -> list[tuple[str, ...]]:
        """The rows of the table: stages, then the whole. Who is first alternates, because of the caches."""
        seconds: tuple[dict[str, list[float]], dict[str, list[float]]] = {}, {}
        for number in range(WARM_UP + min(rounds, self.most_rounds)):
            for system in (0, 1) if number % 2 else (1, 0):
                for stage, duration in _stages(self[1 + system], device):
                    if number >= WARM_UP:
                        seconds[system].setdefault(stage, []).append(duration)
        return [self._row(stage, theirs, seconds[1][stage]) for stage, theirs in seconds[0].items()]

    def _row(self, stage: str, theirs: list[float], ours: list[float]) -> tuple[str, ...]:
        ratios = [one / other for one, other in zip(theirs, ours, strict=True)]
        low, _, high = quantiles(ratios, n=4)
        times = (f"{1e3 * median(values):.2f}" for values in (theirs, ours))
        return f"{self.name}{stage}", *times, f"{median(ratios):.2f}", f"{low:.2f} to {high:.2f}"


def _stages(run: Round, device: torch.device) -> Iterator[tuple[str, float]]:
    """(stage, seconds) of one round; the whole has the name ''."""
    started = before = time.perf_counter()
    for stage in run() or ():
        _wait(device)
        now = time.perf_counter()
        yield f": {stage}", now - before
        before = now
    _wait(device)
    yield "", time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Ultralytics:
    """Network, loss, optimizer and EMA of Ultralytics, joined as in its trainer."""

    def __init__(self, device: torch.device):
        from ultralytics.nn.tasks import DetectionModel
        from ultralytics.utils.loss import v8DetectionLoss
        from ultralytics.utils.torch_utils import ModelEMA as TheirEMA

        self.network = DetectionModel("yolov8n.yaml", nc=NUM_CLASSES, verbose=False).to(device).train()
        self.network.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
        self.loss = v8DetectionLoss(self.network)
        self.optimizer = _sgd(self.network)
        self.ema = TheirEMA(self.network)

    def batch(self, batch: Batch) -> dict[str, Tensor]:
        """Targets as its loader gives them: one row per box, centre and size relative to the input."""
        image, _ = batch.valid.nonzero(as_tuple=True)
        boxes, size = batch.boxes[batch.valid], batch.images.shape[-1]
        centre, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        return {
            "img": batch.images,
            "batch_idx": image.float(),
            "cls": batch.labels[batch.valid].float()[:, None],
            "bboxes": torch.cat((centre, sides), dim=1) / size,
        }

    def step(self, batch: dict[str, Tensor], precision: torch.dtype) -> Iterator[str]:
        with torch.autocast(batch["img"].device.type, precision, enabled=precision != torch.float32):
            predicted = self.network(batch["img"].float() / 255)
            yield "forward"
            loss, _ = self.loss(predicted, batch)
        yield "loss and assigner"
        loss.sum().backward()
        yield from _rest_of_step(self)


class Mars:
    """The same of Mars."""

    def __init__(self, device: torch.device):
        self.network = YoloModel("nano", NUM_CLASSES).train().to(device, memory_format=torch.channels_last)  # type: ignore
        self.loss = DetectionLoss(NUM_CLASSES)
        self.optimizer = _sgd(self.network)
        self.ema = ModelEMA(self.network)

    def step(self, batch: Batch, precision: torch.dtype) -> Iterator[str]:
        with torch.autocast(batch.images.device.type, precision, enabled=precision != torch.float32):
            raw_maps = self.network(network_input(batch.images))
            yield "forward"
            result = self.loss(raw_maps, batch)
        yield "loss and assigner"
        (result.total * len(batch)).backward()
        yield from _rest_of_step(self)


def _rest_of_step(system: Ultralytics | Mars) -> Iterator[str]:
    yield "backward"
    torch.nn.utils.clip_grad_norm_(system.network.parameters(), max_norm=10.0)
    yield "clip"
    system.optimizer.step()
    system.optimizer.zero_grad()
    yield "optimizer"
    system.ema.update(system.network)
    yield "EMA"


def _sgd(network: nn.Module) -> torch.optim.SGD:
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    return torch.optim.SGD(weights, lr=1e-4, momentum=0.937, nesterov=True)


def loss_races(device: torch.device) -> Iterator[Race]:
    """Loss, assigner and backward pass as far as the raw maps, which each system's own network has computed."""
    theirs, ours = Ultralytics(device), Mars(device)
    for images, size, boxes in LOSS_SIZES:
        batch = noise_batch(images, size, NUM_CLASSES, boxes).to(device)
        with torch.no_grad():
            predicted = theirs.network(batch.images.float() / 255)
            raw_maps = [raw.detach() for raw in ours.network(network_input(batch.images))]
        yield Race(
            f"loss and backward to the raw maps, batch {images}, {size} px, {boxes} boxes",
            partial(_their_loss, theirs, predicted, theirs.batch(batch)),
            partial(_our_loss, ours, raw_maps, batch),
        )


def _their_loss(system: Ultralytics, predicted: dict[str, Any], batch: dict[str, Tensor]) -> None:
    leaves = {name: predicted[name].detach().requires_grad_() for name in ("boxes", "scores")}
    system.loss({**predicted, **leaves}, batch)[0].sum().backward()


def _our_loss(system: Mars, raw_maps: Sequence[Tensor], batch: Batch) -> None:
    system.loss([raw.detach().requires_grad_() for raw in raw_maps], batch).total.backward()


def step_races(device: torch.device, precision: torch.dtype) -> Iterator[Race]:
    """The whole step and its stages."""
    theirs, ours = Ultralytics(device), Mars(device)
    images, size, boxes = STEP_SIZE
    batch = noise_batch(images, size, NUM_CLASSES, boxes).to(device)
    their_batch = theirs.batch(batch)
    yield Race(
        f"step, batch {images}, {size} px, {boxes} boxes",
        partial(theirs.step, their_batch, precision),
        partial(ours.step, batch, precision),
    )


def loader_races(device: torch.device, precision: torch.dtype) -> Iterator[Race]:
    """A batch of mosaics from images of 1,024 px in a warm cache in memory, made in this process."""
    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import build_yolo_dataset

    with TemporaryDirectory() as folder:
        mcfg, data = load_checked_data(str(make_data_set(Path(folder) / "drawn", 96, size=1024)), Path(folder))
        yaml = export_yolo(data, Path(folder) / "yolo")
        about = {"names": dict(enumerate(data.source.class_list)), "nc": len(data.source.class_list), "channels": 3}
        for size in (640, 320):
            settings = get_cfg(overrides={"imgsz": size, "cache": "ram", "task": "detect"})
            dataset = build_yolo_dataset(settings, str(yaml.parent / "images" / "train"), BATCH, about)
            theirs = DataLoader(dataset, BATCH, shuffle=True, collate_fn=dataset.collate_fn)
            values = {"inputShape": size, "batchSize": BATCH, "dcore": 0, "cacheImages": "ram", "closeMosaic": 0}
            mcfg = load_config("voc.nano.full", root=folder, data=mcfg.dataDir, overrides=values)
            ours = build_loader(mcfg.with_values(**as_overrides(locate(mcfg))), "train", data.splits["train"])
            yield Race(
                f"loader, {BATCH} mosaics of {size} px from 1,024 px",
                partial(_take, _endless(theirs)),
                partial(_take, _endless(ours)),
            )


def _endless(loader: Any) -> Iterator[Any]:
    for epoch in count():
        if isinstance(loader, BatchLoader):
            loader.set_epoch(epoch % 50)
        yield from loader


def _take(batches: Iterator[Any]) -> None:
    next(batches)


def validation_races(device: torch.device, precision: torch.dtype) -> Iterator[Race]:
    """500 images from their files: network, NMS and AP, with the start weights that come with Mars."""
    with TemporaryDirectory() as folder:
        drawn = make_data_set(Path(folder) / "drawn", 500, seed=1, size=320, kind="objects")
        mcfg, data = load_checked_data(str(drawn), Path(folder))
        yaml = export_yolo(data, Path(folder) / "yolo")
        splits = ", ".join(f"images/{split}" for split in data.splits)
        yaml.write_text(re.sub("^val: .*$", f"val: [{splits}]", yaml.read_text(), flags=re.MULTILINE))
        mcfg = mcfg.with_values(inputShape=(320, 320), batchSize=BATCH, dcore=0)
        model = YoloModel("nano", len(data.source.class_list))
        load_weights(model, START_WEIGHTS)
        checkpoint = write_checkpoint(model, data.source.class_list, Path(folder) / "start.pt", (320, 320))
        from ultralytics import YOLO

        theirs, ours = YOLO(checkpoint), Evaluator(mcfg.with_values(classList=data.source.class_list), precision)
        annotations = [annotation for split in data.splits.values() for annotation in split]
        model = model.to(device, memory_format=torch.channels_last)  # type: ignore

        def their_validation() -> None:
            theirs.val(
                data=str(yaml), imgsz=320, batch=BATCH, workers=0, device=str(device), plots=False, verbose=False,
                half=precision == torch.float16, project=folder, exist_ok=True,
            )  # fmt: skip

        def our_validation() -> None:
            ours.evaluate(model, "all", annotations)

        yield Race("validation of 500 images of 320 px", their_validation, our_validation, most_rounds=5)


RACES: dict[str, Callable[[torch.device, torch.dtype], Iterator[Race]]] = {
    "loss": lambda device, precision: loss_races(device),
    "step": step_races,
    "loader": loader_races,
    "validation": validation_races,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(RACES)}; default: all")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=DTYPES, default="float32")
    args = parser.parse_args(arguments)
    os.environ.setdefault("YOLO_OFFLINE", "1")
    device, precision = pick_device(args.device), DTYPES[args.precision]
    rows = [("", "Ultralytics, ms", "Mars, ms", "ratio", "quartiles")]
    for stage in args.stages or RACES:
        for race in RACES[stage](device, precision):
            rows += race.run(args.rounds, device)
    print("\n".join(align_columns(rows)))
    machine = f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{args.rounds} rounds, {args.precision}, {machine}")


if __name__ == "__main__":
    main()
