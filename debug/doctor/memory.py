"""How much memory a step takes, and the largest batch that fits: measured with a few images, not guessed."""

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from debug.doctor.finding import LOOK, OK, WRONG, Finding
from dl.memory import available_memory, size_text
from ops.batch import Batch, network_input
from ops.precision import autocast
from train.objective import DistillationObjective
from train.setup import TrainingSetup, some_images

_SIZES = {"cpu": (2, 4), "cuda": (4, 8)}  # images of the two steps that are measured
# Of what a forward pass keeps for the way back; the rest are gradients of activations and work space (docs/doctor.md).
_WHOLE_STEP = 1.2
_TIGHT = 0.8  # share of the free memory above which other programs had better not grow


class Room(NamedTuple):
    """Bytes that a training step takes, and those that are there."""

    fixed: int  # weights, gradients, optimizer, average, teacher
    per_image: int
    free: int | None  # None where the system does not tell

    def needed(self, batch_size: int) -> int:
        return self.fixed + batch_size * self.per_image

    @property
    def largest(self) -> int | None:
        """The largest batch that fits; None where the system does not tell."""
        return None if self.free is None else max(0, (self.free - self.fixed) // max(1, self.per_image))


def examine_room(patient: TrainingSetup, batch: Batch) -> Iterator[Finding]:
    """Does the batch of the config fit into memory? The loader's processes and kept images come on top."""
    room, asked = measure(patient, batch), patient.mcfg.batchSize
    needed = room.needed(asked)
    text = (
        f"a step of batchSize={asked} takes about {size_text(needed)} on {patient.device}, {size_text(room.per_image)} "
    )
    text += "an image"
    if room.free is None or room.largest is None:
        yield Finding(LOOK, "memory", f"{text}; the system does not say how much is free: see to it yourself")
        return
    text += f"; {size_text(room.free)} is free, for a batch of about {room.largest} at most"
    if needed > room.free:
        fitting = max(1, round(room.largest * _TIGHT))
        yield Finding(WRONG, "memory", f"{text}: set batchSize={fitting}, or a smaller inputShape")
    elif needed > _TIGHT * room.free:
        yield Finding(LOOK, "memory", f"{text}: that is tight, batchSize={round(room.largest * _TIGHT)} is safer")
    else:
        yield Finding(OK, "memory", text)


def measure(patient: TrainingSetup, batch: Batch) -> Room:
    """By two steps of different size. The weights do not move, and no gradient stays."""
    few, more = _SIZES[patient.device.type]
    trained = (patient.model.train(), *patient.objective.extra_modules)
    small, large = (some_images(batch, count).to(patient.device) for count in (few, more))
    try:
        if patient.device.type == "cuda":
            per_image = (_peak(patient, large) - _peak(patient, small)) // (more - few)
            free = _free_on_gpu(patient.device)
        else:
            per_image = round(_WHOLE_STEP * (_kept(patient, large) - _kept(patient, small)) / (more - few))
            free = available_memory()
    finally:
        for module in trained:
            module.zero_grad(set_to_none=True)
    return Room(_fixed(patient), max(1, per_image), free)


def _kept(patient: TrainingSetup, batch: Batch) -> int:
    """Bytes that a forward pass keeps for the way back, each storage once, those of weights not counted."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would hold the graph that holds it, and neither would ever go

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with autocast(patient.device, patient.precision.dtype):
            result = patient.objective(patient.model, network_input(batch.images), batch)
        own = {tensor.untyped_storage().data_ptr() for tensor in _tensors(patient.model)}
        total = sum(size for place, size in kept.items() if place not in own)
        del result  # not before: memory that is given back would be counted again under the same address
    return total


def _peak(patient: TrainingSetup, batch: Batch) -> int:
    """Most bytes on the GPU during one forward and backward pass."""
    torch.cuda.synchronize(patient.device)
    torch.cuda.reset_peak_memory_stats(patient.device)
    with autocast(patient.device, patient.precision.dtype):
        result = patient.objective(patient.model, network_input(batch.images), batch)
    result.total.backward()
    torch.cuda.synchronize(patient.device)
    return torch.cuda.max_memory_allocated(patient.device)


def _free_on_gpu(device: torch.device) -> int:
    """What other programs leave, and what this one has taken and could use again."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _fixed(patient: TrainingSetup) -> int:
    """Weights with buffers, gradients, what the optimizer keeps, the average; projections and a teacher's weights."""
    model, objective = patient.model, patient.objective
    parameters = chain.from_iterable(module.parameters() for module in (model, *objective.extra_modules))
    trained = sum(parameter.nbytes for parameter in parameters if parameter.requires_grad)
    moments = 2 if patient.mcfg.optimizerType == "AdamW" else 1
    beside = list(objective.extra_modules)
    if isinstance(objective, DistillationObjective):
        beside.append(objective.teacher.as_student(model.num_classes))
    return _bytes_of(model) * (2 if patient.mcfg.useEMA else 1) + trained * (1 + moments) + sum(map(_bytes_of, beside))


def _bytes_of(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in _tensors(module))


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())
