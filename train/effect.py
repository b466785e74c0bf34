"""Does the training have an effect? Compares weights, class scores, loss and validation AP of successive epochs.

Symptoms are only reported; the training continues, since it may be intended. A symptom is reported when it occurs in
two epochs in a row: in the first epoch of a warm-up the learning rate is almost 0.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

log = logging.getLogger("mars")

STILL, SHRINKING, VANISHED = "weights stand still", "weights shrink to zero", "scores vanish"
FLAT, EMA_STILL = "loss does not move", "EMA stands still"

SAMPLED = 128  # elements of each parameter, evenly spaced; 20,000 of nano's three million show the same change
RESOLUTION = torch.finfo(torch.float32).eps  # a smaller relative change of a number cannot be stored
SHRUNK = 0.5  # share of the convolution weights' length left after an epoch; a decay of .0005 leaves .95 or more
LOWEST_SCORE = 1e-7  # new heads start at 1e-5 (1000 classes) to 1e-3; measured margins: docs/experiments.md
SLOW = 1e-4  # relative change of the weights in an epoch; good runs begin with ten times as much
MOVED = 1e-3  # the EMA changes by at least a ten thousandth of this, which float32 can store
UNSURE = 0.05  # a network with a higher class score has learned something; its loss may stay constant
ENDED = 1e-4  # share of the highest learning rate; below it the schedule intends no change
FEWEST_STEPS = 20  # in an epoch, to compare its mean loss with that of another
DEVIATIONS = 2.0  # two means count as equal if they differ by at most this many standard errors
ZERO_EPOCHS = 10  # validations with AP 0 before a warning


@dataclass
class Epoch:
    """Figures of one epoch; plain values."""

    batches: int = 0
    steps: int = 0  # optimizer steps
    loss: float = 0.0  # sum over batches
    loss_squared: float = 0.0
    largest_gradient: float = 0.0  # norm before clipping
    top_logit: float = -math.inf  # the largest class logit; -inf where the loss does not report it
    change: float = 0.0  # relative change of the weights
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

    def has_same_loss(self, before: "Epoch") -> bool:
        """Is the difference of the mean losses within the noise of their batches?"""
        allowed = DEVIATIONS * math.sqrt(self.variance_of_mean + before.variance_of_mean)
        return abs(self.mean_loss - before.mean_loss) <= allowed


class Change(NamedTuple):
    """How a group of weights changed in an epoch."""

    turned: float  # relative length of the change; for matrices without the change of their length
    ratio: float  # length after / length before, median over parameters, since a parameter may be constant


class Effect:
    """Collects the numbers of every step, and the weights at the start and end of every epoch."""

    def __init__(self) -> None:
        self.epoch, self.last = Epoch(), Epoch()
        self._before: dict[str, list[Tensor]] = {}  # weights at the start of the epoch, by group; empty: unknown
        self._reported: list[str] = []
        self._highest_rate = 0.0  # highest learning rate at the end of an epoch

    def start_epoch(self, model: nn.Module, ema: nn.Module | None) -> None:
        self.epoch, self.last = Epoch(), self.epoch
        self._before = _sample(model, ema)

    def add(self, numbers: Mapping[str, float], top_logit: float) -> None:
        """Add the values of a good step."""
        if "loss" in numbers:
            self.epoch.batches += 1
            self.epoch.loss += numbers["loss"]
            self.epoch.loss_squared += numbers["loss"] ** 2
        if "grad_norm" in numbers:
            self.epoch.steps += 1
            self.epoch.largest_gradient = max(self.epoch.largest_gradient, numbers["grad_norm"])
        self.epoch.top_logit = max(self.epoch.top_logit, top_logit)

    def judge(
        self, model: nn.Module, ema: nn.Module | None, optimizer: torch.optim.Optimizer, clip: float
    ) -> tuple[dict[str, Any], list[str]]:
        """At the end of an epoch: entries for `metrics.jsonl`, and a message for each new symptom. May be repeated."""
        now = self.epoch
        after = _sample(model, ema) if self._before else {}
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
        if FLAT in lasting and not now.has_same_loss(self.last):
            lasting.remove(FLAT)
        new = [symptom for symptom in lasting if symptom not in self._reported]
        self._reported += new
        top_score = None if now.top_logit == -math.inf else float(f"{now.top_score:.3g}")
        weight_change = float(f"{now.change:.3g}") if changes else None
        row = {"weight_change": weight_change, "top_score": top_score, "no_effect": lasting}
        return row, [self._message(symptom, changes, model, optimizer, clip) for symptom in new]

    def _symptoms(self, changes: Mapping[str, Change], trains_matrices: bool) -> list[str]:
        now = self.epoch
        matrices, vectors = (changes.get(name, Change(0.0, 1.0)) for name in ("matrices", "vectors"))
        # Rounding also turns decayed weights, by at most the resolution per step.
        is_only_decayed = matrices.turned <= RESOLUTION * now.steps and vectors.turned <= RESOLUTION
        is_still = is_only_decayed or (trains_matrices and matrices.turned <= RESOLUTION)
        is_known = now.top_logit > -math.inf  # a user's own loss need not report it
        is_slow = now.change < SLOW and is_known and now.top_score < UNSURE and now.steps >= FEWEST_STEPS
        found = {
            STILL: is_still,
            SHRINKING: matrices.ratio < SHRUNK,
            VANISHED: is_known and now.top_score < LOWEST_SCORE,
            FLAT: is_slow and not is_still,
            EMA_STILL: "EMA" in changes and changes["EMA"].turned == 0 and now.change >= MOVED,
        }
        return [name for name, is_found in found.items() if is_found]

    def _message(
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
            text = (
                f"the convolution weights changed by {turned:.1e} of their length in an epoch, which is only rounding; "
                f"{self._why_still(model, rate, clip)}"
            )
        elif symptom == SHRINKING:
            text = (
                f"an epoch has reduced the length of the convolution weights to {changes['matrices'].ratio:.1e} of it; "
                f"lower optimizerWeightDecay ({decay:g}; the default is 0.0005)"
            )
        elif symptom == VANISHED:
            text = (
                f"the highest class score of the epoch was {now.top_score:.1e}, so nothing is detected; the usual "
                f"cause is a learning rate that is too high ({rate:g}), or images without labels: lower "
                "baseLearningRate or correct the labels, and start again with --nobuf"
            )
        elif symptom == FLAT:
            text = (
                f"its mean changed from {self.last.mean_loss:.4g} to {now.mean_loss:.4g}, which is within the noise; "
                f"{changed}, and the highest class score was {now.top_score:.2g}: raise baseLearningRate ({rate:g}; "
                f"the default is 0.01) or gradientClip ({clip:g}; the default is 10)"
            )
        else:
            text = f"{changed}, but those of the EMA, which is evaluated and saved, did not: set emaRamp=none"
        return f"no effect: {symptom} in two epochs in a row: {text}"

    def _why_still(self, model: nn.Module, rate: float, clip: float) -> str:
        gradient = self.epoch.largest_gradient
        if not any(parameter.requires_grad for parameter in model.parameters()):
            return "no parameter of the network requires a gradient: unfreeze some parameters"
        if gradient == 0:
            return (
                "every gradient is 0, so the loss does not depend on the weights: check lossWeights and your own code"
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
        """Plain values and tensors for `load_state_dict`."""
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


def finite_or_none(ap: float | None) -> float | None:
    """A validation AP that can be compared, or None: NaN is neither better nor worse than any number."""
    if ap is None or math.isfinite(ap):
        return ap
    log.warning("validation: mAP50-95 is %s; the epoch counts as not validated", ap)
    return None


def unchanged_ap(history: Sequence[dict[str, Any]], epoch: int, ap: float | None) -> str | None:
    """A warning if the mAP50-95 equals that of the last validated epoch in `history` bit for bit; otherwise None.

    The warning is given once. AP 1 may repeat; AP 0 may repeat `ZERO_EPOCHS` times.
    """
    before = [row for row in history if row.get("map50_95") is not None]
    if ap == 0 and len(before) == ZERO_EPOCHS - 1 and not any(row["map50_95"] for row in before):
        return (
            f"validation: mAP50-95 was 0 in each of {ZERO_EPOCHS} epochs: nothing is detected; check labels, weights "
            "and learning rate with `mars.py doctor`"
        )
    if not before or ap in (None, 0.0, 1.0) or before[-1]["map50_95"] != ap:
        return None
    if len(before) > 1 and before[-2]["map50_95"] == ap:
        return None
    return (
        f"validation: mAP50-95 of epoch {epoch + 1} equals that of epoch {before[-1]['epoch'] + 1} bit for bit "
        f"({ap!r}): check that the trained weights and all images are evaluated and that the learning rate is above 0; "
        "with very few objects it may be chance"
    )


def _sample(model: nn.Module, ema: nn.Module | None) -> dict[str, list[Tensor]]:
    """Samples of the parameters, on the CPU: matrices (with weight decay), vectors (without), and the EMA."""
    parameters = list(model.parameters())
    parts = {
        "matrices": [weight for weight in parameters if weight.dim() > 1],
        "vectors": [weight for weight in parameters if weight.dim() <= 1],
        "EMA": [] if ema is None else list(ema.parameters()),
    }
    sampled = {}
    for name, part in parts.items():
        if part:
            samples = [weight.detach().reshape(-1)[:: -(-weight.numel() // SAMPLED) or 1] for weight in part]
            sizes = [sample.numel() for sample in samples]
            # All samples in one transfer. Cloned: a piece would keep the memory of the whole alive.
            sampled[name] = [piece.clone() for piece in torch.cat(samples).cpu().split(sizes)]
    return sampled


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
