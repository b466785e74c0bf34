"""How much memory a training step needs, and the largest batch that fits: measured with a few images."""

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from debug.doctor.data_check import select_images
from debug.doctor.finding import LOOK, OK, WRONG, Finding
from dl.image_cache import available_memory
from ops.batch import Batch
from ops.text import size_text
from train.objective import DistillationObjective
from train.setup import TrainingSetup

_SIZES = {"cpu": (2, 4), "cuda": (4, 8)}  # images of the two steps that are measured
# Times what autograd saves for the backward pass: the rest is gradients of activations and work space (docs/doctor.md).
_WHOLE_STEP = 1.2
_TIGHT = 0.8  # share of the free memory; above it, other programs must not grow


class MemoryNeed(NamedTuple):
    """Bytes that a training step needs, and those that are free."""

    fixed: int  # weights, gradients, optimizer, EMA, teacher
    per_image: int
    free: int | None  # None when the system does not report it

    def needed(self, batch_size: int) -> int:
        return self.fixed + batch_size * self.per_image

    @property
    def largest_batch(self) -> int | None:
        """None when the system does not report the free memory."""
        return None if self.free is None else max(0, (self.free - self.fixed) // max(1, self.per_image))


def examine_memory(setup: TrainingSetup, batch: Batch) -> Iterator[Finding]:
    """Does a batch of the config fit into memory? Loader processes and cached images are not counted."""
    memory, batch_size = measure(setup, batch), setup.mcfg.batchSize
    needed = memory.needed(batch_size)
    text = f"a step of batchSize={batch_size} needs about {size_text(needed)} on {setup.device}, "
    text += f"{size_text(memory.per_image)} per image"
    if memory.free is None or memory.largest_batch is None:
        yield Finding(LOOK, "memory", f"{text}; the system does not report how much is free: check it yourself")
        return
    text += f"; {size_text(memory.free)} is free, enough for a batch of about {memory.largest_batch}"
    safe = round(memory.largest_batch * _TIGHT)
    if needed > memory.free:
        yield Finding(WRONG, "memory", f"{text}: set batchSize={max(1, safe)}, or a smaller inputShape")
    elif needed > _TIGHT * memory.free:
        yield Finding(LOOK, "memory", f"{text}: little is left, batchSize={safe} is safer")
    else:
        yield Finding(OK, "memory", text)


def measure(setup: TrainingSetup, batch: Batch) -> MemoryNeed:
    """From two steps of different size. Weights do not change, and no gradient is kept."""
    few, more = _SIZES[setup.device.type]
    setup.model.train()
    small, large = (select_images(batch, count).to(setup.device) for count in (few, more))
    try:
        if setup.device.type == "cuda":
            per_image = (peak_bytes(setup, large) - peak_bytes(setup, small)) // (more - few)
            free, _ = torch.cuda.mem_get_info(setup.device)  # what other programs leave
            # What this program has reserved but does not use now is free for it, too.
            free += torch.cuda.memory_reserved(setup.device) - torch.cuda.memory_allocated(setup.device)
        else:
            per_image = round(_WHOLE_STEP * (saved_bytes(setup, large) - saved_bytes(setup, small)) / (more - few))
            free = available_memory()
    finally:
        for module in setup.trained_modules:
            module.zero_grad(set_to_none=True)
    return MemoryNeed(fixed_bytes(setup), max(1, per_image), free)


def saved_bytes(setup: TrainingSetup, batch: Batch) -> int:
    """Bytes that autograd saves for the backward pass. Each storage counts once, those of weights do not count."""
    sizes: dict[int, int] = {}  # address of a storage -> bytes

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would keep the graph alive, which keeps the tensor alive

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        result = setup.loss_of(batch)
        weights = {tensor.untyped_storage().data_ptr() for tensor in _tensors(setup.model)}
        total = sum(size for address, size in sizes.items() if address not in weights)
        del result  # not earlier: memory that is freed and used again would have the same address
    return total


def peak_bytes(setup: TrainingSetup, batch: Batch) -> int:
    """The most bytes on the GPU during one forward and backward pass that begins without gradients."""
    for module in setup.trained_modules:  # those of another batch would count for this one
        module.zero_grad(set_to_none=True)
    torch.cuda.synchronize(setup.device)
    torch.cuda.reset_peak_memory_stats(setup.device)
    setup.loss_of(batch).total.backward()
    torch.cuda.synchronize(setup.device)
    return torch.cuda.max_memory_allocated(setup.device)


def fixed_bytes(setup: TrainingSetup) -> int:
    """Weights and buffers, gradients, optimizer states, EMA; the teacher's projections and weights."""
    model, objective = setup.model, setup.objective
    parameters = chain.from_iterable(module.parameters() for module in setup.trained_modules)
    trained = sum(parameter.nbytes for parameter in parameters if parameter.requires_grad)
    num_moments = 2 if setup.mcfg.optimizerType == "AdamW" else 1
    networks: list[nn.Module] = [*setup.trained_modules, *([model] if setup.mcfg.useEMA else [])]
    if isinstance(objective, DistillationObjective):
        networks.append(objective.teacher.as_student(model.num_classes))
    weights = sum(tensor.nbytes for network in networks for tensor in _tensors(network))
    return weights + trained * (1 + num_moments)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())
