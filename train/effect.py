"""Does the training have an effect? Weights, class scores and loss of each epoch, and what to say when two show none.

It is a report and no stop: the run may be meant so, and what it has learned before stays in its files. One epoch alone
says too little (the first of a warm-up has a learning rate of almost 0), so a symptom counts from the second epoch in a
row on.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

STILL, SHRINKING, VANISHED = "weights stand still", "weights shrink to zero", "scores vanish"
FLAT, AVERAGE_STILL = "loss does not move", "EMA stands still"

SAMPLED = 128  # elements of each parameter, spread evenly: 20,000 of nano's three millions show the same change
RESOLUTION = torch.finfo(torch.float32).eps  # relative: a smaller change of one number cannot be stored
SHRUNK = 0.5  # of the length of the convolution weights is left after an epoch; a decay of .0005 leaves .95 or more
LOWEST_SCORE = 1e-7  # fresh heads start at 1e-5 (1000 classes) to 1e-3; docs/experiments.md has the measured margins
SLOW = 1e-4  # change of the weights in an epoch, relative to their length; good runs begin with ten times as much
MOVED = 1e-3  # the EMA follows such a change by a ten thousandth of it at least, which float32 can store
UNSURE = 0.05  # a network with a higher class score has learned something: there a loss may stay where it is
ENDED = 1e-4  # of its highest value: a schedule that has lowered the learning rate so far is meant to change nothing
FEWEST_STEPS = 20  # of an epoch, before its mean loss can be compared with another
DEVIATIONS = 2.0  # of the difference of two means, within which they count as equal


@dataclass
class Epoch:
    """What is known of one epoch; plain values."""

    batches: int = 0
    steps: int = 0  # of the optimizer
    loss: float = 0.0  # summed over batches
    loss_squared: float = 0.0
    largest_gradient: float = 0.0  # its norm before clipping
    top_logit: float = -math.inf  # the largest class logit; -inf where the loss does not report it
    change: float = 0.0  # of the weights, relative
    symptoms: list[str] = field(default_factory=list)

    @property
    def top_score(self) -> float:
        return 1 / (1 + math.exp(min(-self.top_logit, 700.0)))

    @property
    def mean_loss(self) -> float:
        return self.loss / self.batches

    @property
    def variance_of_mean(self) -> float:
        return max(self.loss_squared / self.batches - self.mean_loss**2, 0.0) / self.batches

    def has_loss_of(self, other: "Epoch") -> bool:
        """Do the mean losses differ by no more than the noise of their batches explains?"""
        allowed = DEVIATIONS * math.sqrt(self.variance_of_mean + other.variance_of_mean)
        return abs(self.mean_loss - other.mean_loss) <= allowed


class Change(NamedTuple):
    """How a part of the weights changed in an epoch."""

    turned: float  # relative length of the change; of matrices of what is left when each one's shrinking is removed
    ratio: float  # of the lengths after and before, the median of all parameters: some of them may be constants


class Effect:
    """Takes the numbers of every step and the weights around every epoch. All of it can be saved and loaded."""

    def __init__(self) -> None:
        self.epoch, self.last = Epoch(), Epoch()
        self._before: dict[str, list[Tensor]] = {}  # weights at the start of the epoch, by part; empty: not known
        self._reported: list[str] = []
        self._highest_rate = 0.0  # learning rate, at the end of an epoch

    def start_epoch(self, model: nn.Module, average: nn.Module | None) -> None:
        self.epoch, self.last = Epoch(), self.epoch
        self._before = _sample(model, average)

    def add(self, numbers: Mapping[str, float], top_logit: float) -> None:
        """Take the values of one step that was not bad."""
        if "loss" in numbers:
            self.epoch.batches += 1
            self.epoch.loss += numbers["loss"]
            self.epoch.loss_squared += numbers["loss"] ** 2
        if "grad_norm" in numbers:
            self.epoch.steps += 1
            self.epoch.largest_gradient = max(self.epoch.largest_gradient, numbers["grad_norm"])
        self.epoch.top_logit = max(self.epoch.top_logit, top_logit)

    def judge(
        self, model: nn.Module, average: nn.Module | None, optimizer: torch.optim.Optimizer, clip: float
    ) -> tuple[dict[str, Any], list[str]]:
        """At the end of an epoch: what `metrics.jsonl` says of it, and sentences about what is new. May be repeated."""
        now = self.epoch
        after = _sample(model, average) if self._before else {}
        changes = {
            name: _change(self._before[name], part, name == "matrices")
            for name, part in after.items()
            if name in self._before
        }
        own = {name: change for name, change in changes.items() if name != "EMA"}
        now.change = max((change.turned for change in own.values()), default=0.0)
        trains_matrices = any(weight.requires_grad and weight.dim() > 1 for weight in model.parameters())
        now.symptoms = self._symptoms(changes, trains_matrices) if changes and now.steps else []
        rate = optimizer.param_groups[0]["lr"]
        self._highest_rate = max(self._highest_rate, float(rate))
        if rate < ENDED * self._highest_rate:
            now.symptoms = [symptom for symptom in now.symptoms if symptom not in (STILL, FLAT)]
        lasting = [symptom for symptom in now.symptoms if symptom in self.last.symptoms]
        if FLAT in lasting and not now.has_loss_of(self.last):
            lasting.remove(FLAT)
        new = [symptom for symptom in lasting if symptom not in self._reported]
        self._reported += new
        top_score = None if now.top_logit == -math.inf else float(f"{now.top_score:.3g}")
        weight_change = float(f"{now.change:.3g}") if changes else None
        row = {"weight_change": weight_change, "top_score": top_score, "no_effect": lasting}
        return row, [self._sentence(symptom, changes, model, optimizer, clip) for symptom in new]

    def _symptoms(self, changes: Mapping[str, Change], trains_matrices: bool) -> list[str]:
        now = self.epoch
        matrices, vectors = (changes.get(name, Change(0.0, 1.0)) for name in ("matrices", "vectors"))
        # Decayed weights change their direction by rounding, too: by the resolution a step at most.
        is_only_decayed = matrices.turned <= RESOLUTION * now.steps and vectors.turned <= RESOLUTION
        is_still = is_only_decayed or (trains_matrices and matrices.turned <= RESOLUTION)
        is_known = now.top_logit > -math.inf  # a user's own loss need not report it
        is_slow = now.change < SLOW and is_known and now.top_score < UNSURE and now.steps >= FEWEST_STEPS
        found = {
            STILL: is_still,
            SHRINKING: matrices.ratio < SHRUNK,
            VANISHED: is_known and now.top_score < LOWEST_SCORE,
            FLAT: is_slow and not is_still,
            AVERAGE_STILL: "EMA" in changes and changes["EMA"].turned == 0 and now.change >= MOVED,
        }
        return [name for name, is_found in found.items() if is_found]

    def _sentence(
        self,
        symptom: str,
        changes: Mapping[str, Change],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip: float,
    ) -> str:
        now, rate = self.epoch, optimizer.param_groups[0]["lr"]  # not of the biases, which is higher in a warm-up
        decay = max(group.get("weight_decay", 0.0) for group in optimizer.param_groups)
        changed = f"the weights changed by {now.change:.1e} of their length in an epoch"
        if symptom == STILL:
            turned = changes["matrices"].turned if "matrices" in changes else now.change
            told = (
                f"the convolution weights changed by {turned:.1e} of their length in an epoch, which is no more than "
                f"rounding; {self._why_still(model, rate, clip)}"
            )
        elif symptom == SHRINKING:
            told = (
                f"the length of the convolution weights is {changes['matrices'].ratio:.1e} of that an epoch before; "
                f"lower optimizerWeightDecay ({decay:g}; the default is 0.0005)"
            )
        elif symptom == VANISHED:
            told = (
                f"the highest class score of the epoch was {now.top_score:.1e}, so nothing can be found; the usual "
                f"cause is a learning rate that is too high ({rate:g}), or images without labels: lower "
                "baseLearningRate or correct the labels, and start again with --nobuf"
            )
        elif symptom == FLAT:
            told = (
                f"its mean was {now.mean_loss:.4g} after {self.last.mean_loss:.4g}, which is within its noise; "
                f"{changed}, and no class score was above {now.top_score:.2g}: raise baseLearningRate ({rate:g}; the "
                f"default is 0.01) or gradientClip ({clip:g}; the default is 10)"
            )
        else:
            told = f"{changed}, but those of the EMA, which are evaluated and saved as best, did not: set emaRamp=none"
        return f"no effect: {symptom} in two epochs in a row: {told}"

    def _why_still(self, model: nn.Module, rate: float, clip: float) -> str:
        gradient = self.epoch.largest_gradient
        if not any(parameter.requires_grad for parameter in model.parameters()):
            return "no parameter of the network requires a gradient: unfreeze some of them"
        if gradient == 0:
            return (
                "every gradient is 0, so the loss does not depend on the weights: look at lossWeights and at own code"
            )
        reasons = []
        if clip < RESOLUTION * gradient:
            reasons.append(
                f"gradientClip={clip:g} makes a gradient of norm {gradient:.3g} too small (the default is 10)"
            )
        if rate < RESOLUTION or not reasons:
            reasons.append(f"the learning rate {rate:g} is too low: raise baseLearningRate (the default is 0.01)")
        return ", and ".join(reasons)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors; `load_state_dict` takes them back."""
        return {
            "epoch": asdict(self.epoch),
            "last": asdict(self.last),
            "before": dict(self._before),
            "told": list(self._reported),
            "highest_rate": self._highest_rate,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.last = Epoch(**state["epoch"]), Epoch(**state["last"])
        self._before, self._reported = dict(state["before"]), list(state["told"])
        self._highest_rate = state["highest_rate"]


def _sample(model: nn.Module, average: nn.Module | None) -> dict[str, list[Tensor]]:
    """Elements of the parameters on the CPU: of matrices, which decay, of vectors, which do not, and of the EMA."""
    parameters = list(model.parameters())
    parts = {
        "matrices": [weight for weight in parameters if weight.dim() > 1],
        "vectors": [weight for weight in parameters if weight.dim() <= 1],
        "EMA": [] if average is None else list(average.parameters()),
    }
    return {name: _together_to_cpu([_spread(weight) for weight in part]) for name, part in parts.items() if part}


def _spread(parameter: Tensor) -> Tensor:
    return parameter.detach().reshape(-1)[:: -(-parameter.numel() // SAMPLED) or 1]


def _together_to_cpu(tensors: list[Tensor]) -> list[Tensor]:
    """In one transfer; each a tensor of its own."""
    sizes = [tensor.numel() for tensor in tensors]
    return [piece.clone() for piece in torch.cat(tensors).cpu().split(sizes)]


def _change(before: list[Tensor], after: list[Tensor], is_decayed: bool) -> Change:
    changed = left = 0.0  # squared lengths
    ratios = []
    for old, new in zip(before, after, strict=True):
        old, new = old.double(), new.double()
        old_squared, new_squared = float(old @ old), float(new @ new)
        factor = float(old @ new) / old_squared if is_decayed and old_squared else 1.0
        changed += float((new - factor * old).square().sum())
        left += new_squared
        ratios.append(math.sqrt(new_squared / old_squared) if old_squared else 1.0)
    return Change(math.sqrt(changed / left) if left else 0.0, median(ratios))
