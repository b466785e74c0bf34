"""A training of ours equals one of Ultralytics', step by step: its own loop is driven with the same batches.

What makes a Mars run do what Ultralytics' does with `optimizer=SGD`: training=modern, nominalBatch=64, emaRamp=2000,
minLearningRate a hundredth of baseLearningRate. Where Mars differs on purpose, and how the tests step around it:
* AdamW: biases warm up from 0 (there too with `optimizer=auto`, else from `warmup_bias_lr`).
* An epoch ends with a step of the optimizer, however few batches wait for it; there they wait for the next epoch's.
* Warm-up lasts 100 batches or more, and the last epoch may belong to it.
* While warm-up raises the batches of a step it aims at nominalBatch / batchSize, there at that number rounded.
* The average copies the counters of batch norm; there they stay 0. Nothing reads them.
"""

import math
from typing import NamedTuple

import pytest
import torch
from parity.scenes import batch_of
from parity.table import largest_gap
from torch import Tensor, nn

from config.mconfig import ModelConfig
from model import YoloModel
from model.base.scales import SCALES, Scale
from model.weightsfile import our_key
from ops.batch import Batch
from train.ema import ModelEMA
from train.loss import DetectionLoss, LossResult
from train.objective import DetectionObjective
from train.opt import build_optimizer, set_pace
from train.sched import build_schedule, build_warm_up
from train.step import Stepper

NUM_CLASSES = 5
STEPS, AN_EPOCH = 200, 40  # of the optimizer; batches
NARROW = (0.33, 1 / 16)  # depth and width: every layer, few channels


class Step(NamedTuple):
    """What one step of an optimizer left behind."""

    batch: int
    pace: tuple[float, ...]  # rates of weights, norms and biases, momentum
    weights: dict[str, Tensor]  # and statistics; empty where they were not kept
    average: dict[str, Tensor]


@pytest.fixture
def their_training(reference_today):
    from parity import their_training

    return their_training


def floating(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items() if value.dtype.is_floating_point}


def their_steps(their_training, network, batches, an_epoch, steps, keep_every, **settings) -> list[Step]:
    """Run its loop; what each step left behind, under our names."""
    found: list[Step] = []

    def note(training) -> None:
        groups = {group["param_group"]: group for group in training.optimizer.param_groups}
        rates = [groups[kind]["lr"] for kind in ("weight", "bn", "bias")]
        states: list[dict[str, Tensor]] = [{}, {}]
        if training.num_done % keep_every == 0:
            modules = (training.model, training.ema.ema)
            states = [floating({our_key(key): v for key, v in one.state_dict().items()}) for one in modules]
        found.append(Step(feed.given, (*rates, groups["weight"].get("momentum", 0.0)), *states))

    feed = their_training.Feed(batches, an_epoch, settings.pop("batch"))
    their_training.TheirTraining(network, feed, steps, note, **settings).run()
    return found


def our_steps(mcfg, model, loss, batches, an_epoch, steps, keep_every) -> list[Step]:
    """The same with our parts, joined as `Trainer.train_step` joins them."""
    optimizer, schedule, warm_up = build_optimizer(mcfg, model), build_schedule(mcfg), build_warm_up(mcfg, an_epoch)
    ema = ModelEMA(model, ramp=mcfg.emaRamp)
    is_summed = mcfg.lossReduction == "sum"
    stepper = Stepper(model, DetectionObjective(loss), optimizer, ema, torch.float32, mcfg.gradientClip, is_summed)
    found: list[Step] = []
    for index, batch in enumerate(batches):
        pace = warm_up.pace(index, schedule.rate(index // an_epoch))
        set_pace(optimizer, pace)
        if "grad_norm" not in stepper.add(batch, pace.accumulate):
            continue
        groups = {group["name"]: group for group in optimizer.param_groups}
        rates = [groups[kind]["lr"] for kind in ("weights", "norms", "biases")]
        is_kept = (len(found) + 1) % keep_every == 0
        states = [floating(one.state_dict()) if is_kept else {} for one in (model, ema.model)]
        found.append(Step(index + 1, (*rates, groups["weights"].get("momentum", 0.0)), *states))
        if len(found) == steps:
            break
    return found


def modern(**fields) -> ModelConfig:
    """A config that does what Ultralytics does."""
    mcfg = ModelConfig()
    mcfg.training = "modern"
    for name, value in {"minLearningRate": mcfg.baseLearningRate * 0.01, **fields}.items():
        setattr(mcfg, name, value)
    return mcfg


def their_words(mcfg: ModelConfig) -> dict:
    """The same settings in the words of Ultralytics."""
    is_adam = mcfg.optimizerType == "AdamW"
    return {
        "optimizer": mcfg.optimizerType, "lr0": mcfg.baseLearningRate, "momentum": mcfg.optimizerMomentum,
        "lrf": mcfg.minLearningRate / mcfg.baseLearningRate, "weight_decay": mcfg.optimizerWeightDecay,
        "warmup_epochs": mcfg.warmupEpochs, "warmup_momentum": mcfg.warmupMomentum,
        "warmup_bias_lr": 0.0 if is_adam else mcfg.warmupBiasRate, "cos_lr": mcfg.schedulerType == "cosine",
        "nbs": mcfg.nominalBatch, "batch": mcfg.batchSize, "epochs": mcfg.maxEpoch, "ramp": mcfg.emaRamp,
    }  # fmt: skip


def assert_same_steps(measured, rows, ours, theirs, allowed):
    """Weights and averages of the steps that were kept, and when each step was made at which rates."""
    weights, average = rows
    assert [step.batch for step in ours] == [step.batch for step in theirs]
    kept = [(one, other) for one, other in zip(ours, theirs, strict=True) if one.weights]
    assert kept
    for row, which in ((weights, "weights"), (average, "average")):
        gaps = []
        for one, other in kept:
            own, expected = getattr(one, which), getattr(other, which)
            assert own.keys() == expected.keys()
            gaps += [largest_gap(own[name], expected[name]) for name in own]
        measured(row, max(gaps), allowed)
    paces = [torch.tensor([step.pace for step in steps], dtype=torch.float64) for steps in (ours, theirs)]
    measured("warm-up, schedule: rates, momentum, batches a step", largest_gap(*paces), 1e-12)


class Supplied:
    """Gradients out of thin air, the same for both: half of them are longer than the clip."""

    def __init__(self, model: nn.Module):
        self.shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
        self.count = sum(shape.numel() for shape in self.shapes.values())

    def loss(self, parameters: dict[str, Tensor], index: int) -> Tensor:
        """Of batch `index`: the sum of every weight times what its gradient shall be."""
        random = torch.Generator().manual_seed(index)
        length = 10 * (0.3 + 2 * torch.rand((), generator=random))
        flat = torch.randn(self.count, generator=random) * length / math.sqrt(self.count)
        return torch.cat([parameters[name].flatten() for name in self.shapes]) @ flat


class SuppliedLoss(DetectionLoss):
    """Does not look at the raw maps; the image ids say which batch it is."""

    def __init__(self, model: nn.Module):
        super().__init__(NUM_CLASSES)
        self.parameters, self.supplied = dict(model.named_parameters()), Supplied(model)

    def __call__(self, raw_maps, batch: Batch) -> LossResult:
        total = self.supplied.loss(self.parameters, int(batch.image_ids[0]))
        return LossResult(total / len(batch))  # the step multiplies by the batch size, as Ultralytics' loss does


def supplied_batches(count: int):
    """Images without boxes; their ids say which batch it is."""
    image, nothing = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, 0)
    for index in range(count):
        yield Batch(image, torch.zeros(2, 0, 4), nothing.long(), nothing.bool(), (str(index),) * 2)


@pytest.mark.parametrize(
    ("optimizer", "schedule", "accumulate"),
    [
        ("SGD", "linear", 1),
        ("AdamW", "cosine", 1),
        pytest.param("SGD", "cosine", 1, marks=pytest.mark.slow),
        pytest.param("AdamW", "linear", 1, marks=pytest.mark.slow),
        pytest.param("SGD", "linear", 4, marks=pytest.mark.slow),
        pytest.param("SGD", "cosine", 4, marks=pytest.mark.slow),
        pytest.param("AdamW", "linear", 4, marks=pytest.mark.slow),
        pytest.param("AdamW", "cosine", 4, marks=pytest.mark.slow),
    ],
)
def test_200_steps_on_supplied_gradients(
    reference, their_training, measured, monkeypatch, optimizer, schedule, accumulate
):
    monkeypatch.setitem(SCALES, "narrow", Scale(*NARROW, 1024))
    network = reference.narrow_network(NUM_CLASSES, *NARROW)
    model = YoloModel("narrow", NUM_CLASSES).eval()
    monkeypatch.setattr(model, "forward", lambda images: [])  # nobody looks at its raw maps, as of the reference below
    model.load_state_dict({our_key(key): value for key, value in network.state_dict().items()})
    mcfg = modern(
        optimizerType=optimizer, schedulerType=schedule, emaRamp=2000, batchSize=2, nominalBatch=2 * accumulate,
        maxEpoch=5 if accumulate == 1 else 20, baseLearningRate=0.01 if optimizer == "SGD" else 0.001,
    )  # fmt: skip
    loss, count = SuppliedLoss(model), mcfg.maxEpoch * AN_EPOCH
    their_parameters = {our_key(name): p for name, p in network.named_parameters()}

    def their_loss(batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        total = loss.supplied.loss(their_parameters, batch["index"])
        return total, {"supplied": total.detach()}

    network.forward, network.criterion = their_loss, None
    feed = ({"index": index, "img": torch.zeros(2, 1)} for index in range(count))
    theirs = their_steps(their_training, network, feed, AN_EPOCH, STEPS, 20, **their_words(mcfg))
    ours = our_steps(mcfg, model, loss, supplied_batches(count), AN_EPOCH, STEPS, 20)
    assert len(ours) == STEPS and ours[-1].batch >= accumulate * 150
    moved = largest_gap(ours[-1].weights["head.box.0.0.conv.weight"], ours[19].weights["head.box.0.0.conv.weight"])
    assert moved > 1e-3, "the weights hardly moved: such steps would hide a fault"
    rows = tuple(f"{optimizer}, 200 steps on supplied gradients: {what}" for what in ("weights", "average"))
    assert_same_steps(measured, rows, ours, theirs, 1e-6)


@pytest.fixture
def float64_by_default():
    torch.set_default_dtype(torch.float64)  # the reference pads its targets in the default dtype
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("optimizer", "accumulate"), [("SGD", 1), ("AdamW", 1), pytest.param("SGD", 2, marks=pytest.mark.slow)]
)
def test_five_training_steps_in_float64(reference, their_training, measured, float64_by_default, optimizer, accumulate):
    """Images to averages: network, assigner, loss, clipping, optimizer and average, at a full learning rate."""
    network = reference.network("nano", NUM_CLASSES).double().train()
    network.criterion = reference.loss(network)
    model = YoloModel("nano", NUM_CLASSES).double().train()
    model.load_state_dict({our_key(key): value for key, value in network.state_dict().items()})
    model.register_forward_pre_hook(lambda _, args: (args[0].double(),))  # the step makes float32 of bytes
    mcfg = modern(
        optimizerType=optimizer, schedulerType="cosine", emaRamp=5, batchSize=4, nominalBatch=4 * accumulate,
        maxEpoch=5, warmupEpochs=0, baseLearningRate=0.01 if optimizer == "SGD" else 0.001,
    )  # fmt: skip
    kinds = ("usual", "crowded", "some empty", "long", "tiny")
    batches = [batch_of(kinds[seed % 5], seed, NUM_CLASSES) for seed in range(5 * accumulate)]

    def their_batch(batch: Batch) -> dict[str, Tensor]:
        targets = reference.loss_batch(batch.boxes.double(), batch.labels, batch.valid, *batch.images.shape[2:])
        return {"img": (batch.images.float() / 255).double(), **targets}

    theirs = their_steps(their_training, network, map(their_batch, batches), accumulate, 5, 5, **their_words(mcfg))
    ours = our_steps(mcfg, model, DetectionLoss(NUM_CLASSES), batches, accumulate, 5, 5)
    assert len(ours) == 5
    assert ours[-1].weights["backbone.l0.conv.weight"].dtype == torch.float64
    rows = ("five training steps in float64: weights, statistics", "five training steps in float64: average")
    assert_same_steps(measured, rows, ours, theirs, 1e-8)


@pytest.mark.parametrize(("batch", "nominal"), [(16, 64), (24, 64), (64, 64), (128, 64), (5, 64), (2, 2)])
def test_weight_decay_follows_what_a_step_holds(their_training, measured, batch, nominal):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    mcfg = modern(batchSize=batch, nominalBatch=nominal, emaRamp=2000, maxEpoch=2)
    words = their_words(mcfg)
    words.pop("batch")
    feed = their_training.Feed((), 100, batch)
    training = their_training.TheirTraining(network, feed, 1, lambda _: None, **words)
    training._build_train_pipeline()
    theirs = {group["param_group"]: group["weight_decay"] for group in training.optimizer.param_groups}
    ours = {group["name"]: group["weight_decay"] for group in build_optimizer(mcfg, network).param_groups}
    pairs = (("weights", "weight"), ("norms", "bn"), ("biases", "bias"))
    assert build_warm_up(mcfg, 100).pace(1000, 0.01).accumulate == training.accumulate
    measured("weight decay of a nominal batch", max(abs(ours[a] - theirs[b]) for a, b in pairs), 1e-12)
