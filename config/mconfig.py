"""ModelConfig: every field that a recipe or `--set` can change, with its meaning, unit, default and check.

The spelling is the assignment's, so that its recipes load unchanged. Setting a name that does not exist, or a value of
the wrong type, is an error on the line that does it. `config.load` checks the whole and freezes it.
"""

import copy
import dataclasses
import json
import re
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from config.errors import UnknownField, UserError
from config.fields import coerce, declare, each, fraction, nearest, not_negative, one_of, positive, unless_none
from config.frozen import FrozenDict

PHASES = ("nano", "small", "medium", "large", "extra")
PHASE_ALIASES = {"extended": "extra"}  # the assignment's word for x


def _multiple_of_32(shape: tuple[int, int]) -> str | None:
    if all(side > 0 and side % 32 == 0 for side in shape):
        return None
    near = ",".join(str(max(32, round(side / 32) * 32)) for side in shape)
    return f"both sides must be multiples of 32 (the coarsest stride); the nearest is {near}"


def _device(word: str) -> str | None:
    return None if re.fullmatch(r"auto|cpu|cuda(:\d+)?", word) else "must be auto, cpu, cuda or cuda:N, e.g. cuda:0"


def _file_address(address: str) -> str | None:
    if address.startswith("file://") and len(address) > len("file://"):
        return None
    if "://" in address:
        return "only file:// addresses are read; download the file and give file:///path/to/it"
    return f"must be an address; for a file on this machine write file://{address}"


def _momentum(value: float) -> str | None:
    return None if 0 <= value < 1 else "must lie between 0 and 1, and 1 itself would never forget a step"


def _not_empty(value: str) -> str | None:
    return None if value.strip() else "must not be empty; none leaves it out"


def _names(value: tuple[str, ...] | str) -> str | None:
    if isinstance(value, str):
        return _not_empty(value)
    if not value:
        return "must name at least one class; none leaves it out"
    twice = sorted({name for name in value if value.count(name) > 1})
    return f"names {', '.join(twice)} more than once" if twice else None


def _folder_name(folder_name: str) -> str | None:
    """A run's folder lies directly below root."""
    if folder_name in (".", "..") or re.search(r"[/\\\0]", folder_name):
        return "must be a plain folder name, without path separators; --root chooses where it lies"
    return None


_path = unless_none(_not_empty)
_classes = unless_none(_names)


@dataclasses.dataclass(eq=False)
class ModelConfig:
    """One run, described. Mutable while a recipe fills it, frozen after `config.load` has checked it."""

    # Who and where
    cfgname: str = declare(
        "", "the name on the command line, e.g. c1.nano.full; filled in on loading", alters="nothing"
    )
    runName: str = declare(
        "",
        "folder of the run below root; cfgname without machine tags unless --name is given",
        _folder_name,
        alters="nothing",
    )
    root: str = declare(
        "", "folder that holds every run, absolute; --root, else $MARS_ROOT, else ../mars-running", alters="nothing"
    )
    nobuf: bool = declare(False, "start afresh: an older run's folder is renamed, not resumed", alters="nothing")
    seed: int = declare(859, "seed of weights, data order and augmentation", not_negative)
    device: str = declare("auto", "auto, cpu, cuda or cuda:N", _device, alters="nothing")
    cuda: bool = declare(True, "False keeps device=auto on the CPU, as the assignment's field does", alters="nothing")
    dcore: int | None = declare(
        None, "loader processes; none: one per spare core, at most 8", unless_none(not_negative), alters="nothing"
    )

    # Data
    dataDir: str | None = declare(
        None, "data set folder whose layout is found out; imageDir and annotationDir win over it", _path, alters="data"
    )
    drawnScenes: int = declare(
        0,
        "scenes of aircraft to draw into dataDir first, unless they are there; 0: draw none",
        not_negative,
        alters="data",
    )
    imageDir: str | None = declare(None, "folder with the images", _path, alters="data")
    annotationDir: str | None = declare(None, "folder with one Pascal VOC xml per image", _path, alters="data")
    classList: tuple[str, ...] | str | None = declare(
        None, "class names in label order, or a file with one per line", _classes, alters="data"
    )
    subsetMap: dict[str, tuple[str, ...] | str] = declare(
        dict, "split name -> file with one image name per line, or the names", alters="data"
    )
    suffix: str = declare(".jpg", "suffix that wins when one name has several image files", alters="data")
    trainSplitName: str = declare("train", "split to train on", _not_empty)
    validationSplitName: str = declare("validation", "split to validate on after an epoch", _not_empty)
    testSplitName: str = declare("test", "split to evaluate at the end", _not_empty, alters="nothing")
    splitSeed: int = declare(
        859, "seed of splits that are drawn because the data set has none", not_negative, alters="data"
    )
    trainSelectedClasses: tuple[str, ...] | None = declare(
        None, "train on the labels of these classes only; none: all", _classes
    )
    testSelectedClasses: tuple[str, ...] | None = declare(
        None, "report on these classes only; none: all", _classes, alters="nothing"
    )
    unselectedImages: str = declare(
        "keep",
        "images with unselected classes only: keep as background (as the assignment's teacher had them), or drop",
        one_of("keep", "drop"),
    )
    badFiles: str = declare(
        "stop",
        "unreadable images and annotations: stop and list, or skip and count",
        one_of("stop", "skip"),
        alters="data",
    )

    # Network
    modelName: str = declare("base", "base, or distillation (a student with a teacher)", one_of("base", "distillation"))
    phase: str = declare("nano", "scale of the network", one_of(*PHASES))
    inputShape: tuple[int, int] = declare(
        (640, 640), "height and width of the network input in pixels", _multiple_of_32
    )
    regMax: int = declare(
        16, "bins per side of the box distribution", lambda bins: None if bins >= 2 else "must be 2 or more"
    )
    pretrainedBackboneUrl: str | None = declare(
        None, "file:// address of backbone weights to start from", unless_none(_file_address)
    )
    checkpointModelFile: str | None = declare(
        None, "weights of a whole model to start from, with epochs counted from startEpoch", _path
    )

    # Training
    augmentation: str = declare(
        "assignment", "assignment (scale .25-2, jitter .3, flip, HSV) or none", one_of("assignment", "none")
    )
    startEpoch: int = declare(
        0, "first epoch, e.g. to go on with another schedule from checkpointModelFile", not_negative
    )
    maxEpoch: int = declare(200, "epochs, counted from 0", positive, alters="schedule")
    batchSize: int = declare(16, "images a step", positive)
    backboneFreezeEpochs: tuple[int, ...] = declare(
        (), "epochs in which the backbone's weights and statistics hold still", each(not_negative)
    )
    lossWeights: tuple[float, float, float] = declare(
        (7.5, 0.5, 1.5), "gains of box, class and distribution loss", each(not_negative)
    )
    lossReduction: str = declare(
        "mean", "mean: loss an image, as the assignment; sum: times the batch, as Ultralytics", one_of("mean", "sum")
    )
    talTopk: int = declare(10, "points a ground truth may choose", positive)
    talMinSide: float = declare(
        0.0, "sides below this many pixels count as this long when points inside a box are sought", not_negative
    )
    optimizerType: str = declare("SGD", "SGD (Nesterov) or AdamW", one_of("SGD", "AdamW"))
    optimizerMomentum: float = declare(0.937, "momentum, or beta1 of AdamW", _momentum)
    optimizerWeightDecay: float = declare(5e-4, "on convolution weights only", not_negative)
    schedulerType: str = declare("COS", "COS (cosine with quadratic warm-up) or plateau", one_of("COS", "plateau"))
    baseLearningRate: float = declare(1e-2, "highest learning rate", positive, alters="schedule")
    minLearningRate: float = declare(1e-4, "learning rate of the last epochs", not_negative, alters="schedule")
    gradientClip: float = declare(10.0, "largest norm of the gradient", positive)
    useEMA: bool = declare(
        False, "keep an exponential moving average of the weights; it is what is evaluated and saved as best"
    )

    # Validation, numbers and pictures
    epochValidation: bool = declare(
        True, "validate after epochs and keep the best weights; else the last are evaluated", alters="nothing"
    )
    validationInterval: int = declare(1, "epochs from one validation to the next", positive, alters="nothing")
    scoreThreshold: float = declare(0.001, "detections below this score are dropped", fraction, alters="nothing")
    nmsIou: float = declare(
        0.7, "overlap above which the lower of two detections of one class is dropped", fraction, alters="nothing"
    )
    maxDetections: int = declare(300, "detections kept an image", positive, alters="nothing")
    apStyle: str = declare(
        "coco",
        "definition of AP in the table: coco, voc07 or assignment",
        one_of("coco", "voc07", "assignment"),
        alters="nothing",
    )
    minIou: float = declare(
        0.5, "overlap at which a painted detection is right, and of the assignment's AP", fraction, alters="nothing"
    )
    paintImages: bool = declare(
        False, "paint truth and predictions of testSplitName into eval/images", alters="nothing"
    )
    paintConf: float = declare(0.2, "lowest score that is painted", fraction, alters="nothing")

    # Distillation
    teacherModelFile: str | None = declare(None, "weights of the teacher", _path)
    teacherClassIndexes: tuple[int, ...] | None = declare(
        None, "the teacher's classes as indexes into classList; none: all", unless_none(each(not_negative))
    )
    distilLossWeights: tuple[float, float, float] = declare(
        (1.0, 0.2, 0.01), "weights of detection, CWD and response loss", each(not_negative)
    )
    distilEpochs: tuple[int, ...] = declare(
        (), "epochs in which the student is distilled; empty: all", each(not_negative)
    )
    distilSelectedClasses: tuple[str, ...] | None = declare(
        None, "classes whose labels the student sees; none: all", _classes
    )
    temperature: float = declare(2.0, "softens teacher and student in the divergences", positive)

    def __post_init__(self) -> None:
        for name, value in _loading.get()[0].items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if self.is_frozen:
            raise UserError(
                f"{name}={value!r}: this config is checked and frozen; pass overrides to load_config instead"
            )
        checked, pins = checked_value(name, value), _loading.get()[1]
        if name in pins:
            checked = pins[name]
        elif isinstance(value, list):
            checked = list(checked)  # a recipe may go on with its list: mcfg.classList += [...]; freezing makes a tuple
        object.__setattr__(self, name, checked)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle look for their hooks this way
            raise AttributeError(name)
        raise UnknownField(unknown_field(name))

    @property
    def is_frozen(self) -> bool:
        return "_frozen" in self.__dict__

    @property
    def run_dir(self) -> Path:
        """The run's folder, ROOT/NAME."""
        return Path(self.root) / self.runName

    def frozen(self) -> "ModelConfig":
        """A copy that refuses every further change, that of its dictionaries included."""
        other = copy.copy(self)
        for name in _FIELDS:
            value = checked_value(name, copy.deepcopy(self.__dict__[name]))
            object.__setattr__(other, name, FrozenDict(value) if isinstance(value, dict) else value)
        object.__setattr__(other, "_frozen", True)
        return other

    def to_dict(self) -> dict[str, Any]:
        """Field -> plain value, ready for JSON; `from_dict` takes it back."""
        return json.loads(json.dumps({name: self.__dict__[name] for name in _FIELDS}))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """The frozen config that `to_dict` described. Raises `UserError` on an unknown or wrong field."""
        mcfg = cls()
        for name, value in values.items():
            setattr(mcfg, name, value)
        return mcfg.frozen()


_FIELDS = {field.name: field for field in dataclasses.fields(ModelConfig)}
_TYPES = typing.get_type_hints(ModelConfig)

# Values that a config starts from and values that nothing changes, while a recipe runs.
_loading: ContextVar[tuple[Mapping[str, Any], Mapping[str, Any]]] = ContextVar("_loading", default=({}, {}))


@contextmanager
def loading(starts: Mapping[str, Any], pins: Mapping[str, Any]) -> Iterator[None]:
    """Within the block a new ModelConfig starts from `starts`, and the fields in `pins` keep their values.

    So tags and `--set` stand above the recipe while it runs, and what a recipe computes from a field (a tenth of
    `baseLearningRate`, a file name with `phase` in it) follows the value that will be used.
    """
    token = _loading.set((starts, pins))
    try:
        yield
    finally:
        _loading.reset(token)


def checked_value(name: str, value: Any) -> Any:
    """`value` as field `name` keeps it. Raises `UserError` for an unknown field, a wrong type or a refused value."""
    if name == "subsetMap" and value is None:
        value = {}
    if name == "phase":
        value = PHASE_ALIASES.get(value, value)
    value = coerce(name, value, field_type(name))
    check = _FIELDS[name].metadata["check"]
    complaint = check(value) if check else None
    if complaint:
        raise UserError(f"{name}={value!r}: {complaint}")
    return value


def field_names() -> tuple[str, ...]:
    """Every field, in the order in which it is documented."""
    return tuple(_FIELDS)


def field_doc(name: str) -> str:
    """What a field means."""
    return _FIELDS[name].metadata["doc"]


def field_alters(name: str) -> str:
    """What changing the field does to a run that has begun: see `config.fields.Alters`."""
    return _FIELDS[name].metadata["alters"]


def field_default(name: str) -> Any:
    """A field's value when nobody sets it."""
    return getattr(ModelConfig(), name)


def field_type(name: str) -> Any:
    """A field's annotation. Raises `UserError` with the nearest right name for an unknown one."""
    if name not in _FIELDS:
        raise UnknownField(unknown_field(name))
    return _TYPES[name]


def unknown_field(name: str) -> str:
    """The sentence for a field that does not exist."""
    return f"{name}: no such config field{nearest(name, _FIELDS)}; `python mars.py --fields` lists them all"
