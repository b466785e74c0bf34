"""ModelConfig: every field that a recipe or `--set` can change, with its meaning, unit, default and check.

The spelling is the assignment's, so that its recipes load unchanged. Setting a name that does not exist, or a value of
the wrong type, is an error on the line that does it. `config.load` checks the whole and freezes it.
"""

import copy
import dataclasses
import json
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from config import checks
from config.errors import UnknownField, UserError
from config.fields import (
    coerce,
    declare,
    each,
    fraction,
    nearest,
    one_of,
    shown_value,
    unless_none,
)
from config.frozen import FrozenDict
from config.training import WORDS

PHASES = ("nano", "small", "medium", "large", "extra")
OFFICIAL_WEIGHTS = {phase: f"yolov8{phase[0] if phase != 'extra' else 'x'}" for phase in PHASES}
PHASE_ALIASES = {"extended": "extra"}  # the assignment's word for x


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
        checks.folder_name,
        alters="nothing",
    )
    root: str = declare(
        "", "folder that holds every run, absolute; --root, else $MARS_ROOT, else ../mars-running", alters="nothing"
    )
    nobuf: bool = declare(False, "start afresh: an older run's folder is renamed, not resumed", alters="nothing")
    seed: int = declare(859, "seed of weights, data order and augmentation", checks.seed)
    device: str = declare("auto", "auto, cpu, cuda or cuda:N", checks.device_word, alters="nothing")
    cuda: bool = declare(True, "False keeps device=auto on the CPU, as the assignment's field does", alters="nothing")
    dcore: int | None = declare(
        None, "loader processes; none: one per spare core, at most 8", unless_none(checks.processes), alters="nothing"
    )

    # Data
    dataDir: str | None = declare(
        None,
        "data set folder whose layout is found out; imageDir and annotationDir win over it",
        checks.path,
        alters="data",
    )
    drawnScenes: int = declare(
        0,
        "scenes of aircraft to draw into dataDir first, unless they are there; 0: draw none",
        checks.scenes,
        alters="data",
    )
    imageDir: str | None = declare(None, "folder with the images", checks.path, alters="data")
    annotationDir: str | None = declare(
        None, "folder with the annotations: xml, json or txt", checks.path, alters="data"
    )
    annotationFormat: str = declare(
        "auto",
        "voc (Pascal VOC xml), coco (json), yolo (txt), or auto: the first of these that is there",
        one_of("auto", "voc", "coco", "yolo"),
        alters="data",
    )
    classList: tuple[str, ...] | str | None = declare(
        None, "class names in label order, or a file with one per line", checks.classes, alters="data"
    )
    subsetMap: dict[str, tuple[str, ...] | str] = declare(
        dict, "split name -> file with one image name per line, or the names", checks.split_lists, alters="data"
    )
    suffix: str = declare(".jpg", "suffix that wins when one name has several image files", alters="data")
    trainSplitName: str = declare("train", "split to train on", checks.not_empty)
    validationSplitName: str = declare("validation", "split to validate on after an epoch", checks.not_empty)
    testSplitName: str = declare("test", "split to evaluate at the end", checks.not_empty, alters="nothing")
    splitSeed: int = declare(
        859, "seed of splits that are drawn because the data set has none", checks.seed, alters="data"
    )
    smallShots: int | None = declare(
        None,
        "objects of each class in the split 'small', which is drawn from 'train'; none: as the data set lists it, or "
        "10 where it has no such list",
        unless_none(checks.objects),
        alters="data",
    )
    smallSeed: int = declare(0, "seed of the split 'small' when it is drawn", checks.seed, alters="data")
    trainSelectedClasses: tuple[str, ...] | None = declare(
        None, "train on the labels of these classes only; none: all", checks.classes
    )
    testSelectedClasses: tuple[str, ...] | None = declare(
        None, "report on these classes only; none: all", checks.classes, alters="nothing"
    )
    baseClasses: int | tuple[str, ...] | None = declare(
        None,
        "classes that are known before the others, which are novel: their names, or how many of classList's first; "
        "none: classes are in no groups",
        checks.base_classes,
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
    pixelMax: int | None = declare(
        None,
        "value of 16-bit images that becomes white, 1 to 65535 (of a 12-bit camera 4095); none: from the largest value "
        "of the images, or as the weights were trained",
        unless_none(checks.sixteen_bits),
        alters="data",
    )

    # Network
    modelName: str = declare("base", "base, or distillation (a student with a teacher)", one_of("base", "distillation"))
    phase: str = declare("nano", "scale of the network", one_of(*PHASES))
    inputShape: tuple[int, int] = declare(
        (640, 640), "height and width of the network input in pixels", checks.multiple_of_32
    )
    regMax: int = declare(16, "bins per side of the box distribution", checks.bins)
    keepHeadWidth: bool | None = declare(
        None,
        "True: the class branch is as wide as in the official weights of 80 classes (nano: 80 instead of 64 channels), "
        "False: as wide as the number of classes asks for; none: as in the weights that training starts from",
    )
    pretrained: str | None = declare(
        None,
        "official weights to start from by name: yolov8n, yolov8s, ...; fetched once into resources/pretrained",
        unless_none(one_of(*OFFICIAL_WEIGHTS.values())),
    )
    pretrainedBackboneUrl: str | None = declare(
        None, "file:// address of backbone weights to start from", unless_none(checks.file_address)
    )
    checkpointModelFile: str | None = declare(
        None, "weights of a whole model to start from, with epochs counted from startEpoch", checks.path
    )

    # Training
    training: str = declare(
        "assignment",
        "one word for a whole way to train, which sets the fields of config/training.py: assignment or modern",
        one_of("assignment", "modern"),
        alters="nothing",  # the fields that it sets do
    )
    augmentation: str = declare(
        "assignment",
        "assignment (scale .25-2, jitter .3, flip, HSV), modern (mosaic, scale, translate, flip, HSV) or none",
        one_of("assignment", "modern", "none"),
    )
    mosaic: float = declare(1.0, "modern: probability that four images are joined into one", fraction)
    closeMosaic: int = declare(
        10, "modern: last epochs without mosaic, at most a third of all epochs", checks.epoch, alters="schedule"
    )
    scaleRange: float = declare(0.5, "modern: size times 1 - x to 1 + x", checks.below_one)
    translate: float = declare(0.1, "modern: shift by up to this fraction of the input", fraction)
    flip: float = declare(0.5, "modern: probability of a mirrored image; 0 where left and right differ", fraction)
    hsv: tuple[float, float, float] = declare(
        (0.015, 0.7, 0.4),
        "modern: hue shifted by up to x of the circle, saturation and value times 1 - x to 1 + x",
        each(fraction),
    )
    startEpoch: int = declare(
        0, "first epoch, e.g. to go on with another schedule from checkpointModelFile", checks.epoch
    )
    maxEpoch: int = declare(200, "epochs, counted from 0", checks.epochs, alters="schedule")
    trainMinutes: float | None = declare(
        None,
        "lowers maxEpoch to what this machine is likely to do in this time, judged as the training starts, but not "
        "below trainMinEpochs; none: it takes what it takes",
        unless_none(checks.minutes),
        alters="schedule",
    )
    trainMinEpochs: int = declare(
        10,
        "epochs that trainMinutes leaves at least; the training may then take longer",
        checks.epochs,
        alters="nothing",
    )
    batchSize: int = declare(16, "images a forward pass", checks.batch)
    nominalBatch: int | None = declare(
        None,
        "images a step of the optimizer: gradients of several batches are summed up to it, and weight decay is scaled "
        "by what they hold of it; none: every batch is a step",
        unless_none(checks.images_a_step),
    )
    backboneFreezeEpochs: tuple[int, ...] = declare(
        (), "epochs in which the backbone's weights and statistics hold still", each(checks.epoch)
    )
    lossWeights: tuple[float, float, float] = declare(
        (7.5, 0.5, 1.5), "gains of box, class and distribution loss", each(checks.gain)
    )
    lossReduction: str = declare(
        "mean", "mean: loss an image, as the assignment; sum: times the batch, as Ultralytics", one_of("mean", "sum")
    )
    talTopk: int = declare(10, "points a ground truth may choose", checks.choices)
    talMinSide: float = declare(
        0.0, "sides below this many pixels count as this long when points inside a box are sought", checks.pixels
    )
    optimizerType: str = declare("SGD", "SGD (Nesterov) or AdamW", one_of("SGD", "AdamW"))
    optimizerMomentum: float = declare(0.937, "momentum, or beta1 of AdamW", checks.momentum)
    optimizerWeightDecay: float = declare(5e-4, "on convolution weights only", checks.decay)
    schedulerType: str = declare(
        "COS",
        "COS (the assignment's: quadratic warm-up, half a cosine, a flat end), plateau (the same warm-up, then a tenth "
        "whenever validation gets no better), linear or cosine (warm-up by steps, down to minLearningRate)",
        one_of("COS", "plateau", "linear", "cosine"),
    )
    baseLearningRate: float = declare(1e-2, "highest learning rate", checks.highest_rate, alters="schedule")
    minLearningRate: float = declare(1e-4, "learning rate of the last epochs", checks.rate, alters="schedule")
    warmupEpochs: float = declare(3.0, "linear and cosine: epochs of warm-up, at least 100 batches", checks.warmup)
    warmupMomentum: float = declare(0.8, "linear and cosine: momentum that warm-up starts from", checks.momentum)
    warmupBiasRate: float = declare(
        0.1, "linear and cosine: learning rate of biases that warm-up starts from", checks.rate
    )
    gradientClip: float = declare(10.0, "largest norm of the gradient", checks.norm)
    useEMA: bool = declare(
        False, "keep an exponential moving average of the weights; it is what is evaluated and saved as best"
    )
    emaRamp: float | None = declare(
        None,
        "steps over which the average grows slow, as .9999 (1 - e^(-step / x)); 2000 is Ultralytics'; none: less where "
        "the run is short, so that it averages over a tenth of its steps in the end",
        unless_none(checks.steps),
    )
    precision: str = declare(
        "auto",
        "auto (what the device has and is faster), bfloat16, float16 (CUDA) or float32; losses are always float32; "
        "auto measures times, so two runs with one seed can differ: set a type where runs are compared",
        one_of("auto", "bfloat16", "float16", "float32"),
    )
    onBadStep: str = declare(
        "stop",
        "a step that is not finite: stop (with a page that says where it was born), skip (the batch is left out), or "
        "rewind (to the last checkpoint that stays finite on the batch, which is then left out; at most three times)",
        one_of("stop", "skip", "rewind"),
        alters="nothing",
    )
    badStepsInARow: int = declare(10, "onBadStep=skip: stop after so many in a row", checks.steps, alters="nothing")
    healthInterval: int = declare(
        100,
        "optimizer steps between two looks at whether weights and average are finite; they are looked at before every "
        "checkpoint, too",
        checks.steps,
        alters="nothing",
    )
    cacheImages: str = declare(
        "auto",
        "decoded images kept as uint8: ram, disk, none, or auto (ram where they fit well)",
        one_of("auto", "ram", "disk", "none"),
        alters="nothing",
    )

    # Validation, numbers and pictures
    epochValidation: bool = declare(
        True, "validate after epochs and keep the best weights; else the last are evaluated", alters="nothing"
    )
    validationInterval: int = declare(1, "epochs from one validation to the next", checks.steps, alters="nothing")
    scoreThreshold: float = declare(0.001, "detections below this score are dropped", fraction, alters="nothing")
    nmsIou: float = declare(
        0.7, "overlap above which the lower of two detections of one class is dropped", fraction, alters="nothing"
    )
    maxDetections: int = declare(300, "detections kept an image", checks.choices, alters="nothing")
    apStyle: str = declare(
        "coco",
        "definition of AP in the table: coco, voc07, ultralytics or assignment",
        one_of("coco", "voc07", "ultralytics", "assignment"),
        alters="nothing",
    )
    minIou: float = declare(
        0.5, "overlap at which a painted detection is right, and of the assignment's AP", fraction, alters="nothing"
    )
    paintImages: bool = declare(False, "paint truth and predictions into eval/SPLIT/images", alters="nothing")
    paintConf: float = declare(0.2, "lowest score that is painted", fraction, alters="nothing")

    # Distillation, and learning new classes without forgetting the old
    teacherModelFile: str | None = declare(
        None, "weights of the teacher, or the folder of the run that trained it", checks.path
    )
    teacherClassIndexes: tuple[int, ...] | None = declare(
        None,
        "the teacher's classes as indexes into classList; none: those that its file says it was trained on",
        unless_none(each(checks.label)),
    )
    distilling: str = declare(
        "assignment",
        "one word for a whole way to distil, which sets the fields of config/training.py: assignment or modern",
        one_of("assignment", "modern"),
        alters="nothing",  # the fields that it sets do
    )
    distilLossWeights: tuple[float, float, float] = declare(
        (1.0, 0.2, 0.01), "weights of detection, CWD and response loss", each(checks.gain)
    )
    boxResponseWeight: float = declare(
        0.0, "weight of the loss on the teacher's box distributions, behind the response's", checks.gain
    )
    distilFeatures: tuple[str, ...] = declare(
        ("feat0", "feat1", "feat2", "feat3", "C", "X", "Y", "Z"),
        "maps that CWD compares: feat0 to feat3 of the backbone, C, X, Y, Z of the neck",
        checks.feature_maps,
    )
    responseMode: str = declare(
        "seed",
        "seed: the assignment's softmax over the classes; binary: class by class, where teacher and student differ",
        one_of("binary", "seed"),
    )
    distilEpochs: tuple[int, ...] = declare(
        (), "epochs in which the student is distilled; empty: all", each(checks.epoch)
    )
    distilSchedule: str = declare(
        "constant",
        "weight of what the teacher adds: constant, or cosine (down to nothing)",
        one_of("constant", "cosine"),
    )
    distilSelectedClasses: tuple[str, ...] | None = declare(
        None, "classes whose labels the student sees; none: all", checks.classes
    )
    unlabelledClasses: str = declare(
        "background",
        "objects of classes whose labels are not seen: background (taught as such), mask (their classes learn nothing "
        "from these images), or pseudo (masked, and the teacher's detections are labels)",
        one_of("background", "mask", "pseudo"),
    )
    pseudoScore: float = declare(0.5, "score from which the teacher's detections are labels", fraction)
    replayImages: int = declare(
        0,
        "images of the split 'train' that are shown again, with labels of baseClasses, as balanced as can be; a smaller"
        " training split then comes several times an epoch, so that it is about half of it",
        checks.images,
    )
    temperature: float = declare(2.0, "softens teacher and student in the divergences", checks.softness)

    def __post_init__(self) -> None:
        for name, value in _loading.get()[0].items():
            setattr(self, name, value)
        for word in WORDS:
            if getattr(self, word) != _FIELDS[word].default:  # pinned; first, so that the recipe's lines stand above it
                self._set_fields_of(word)

    def __setattr__(self, name: str, value: Any) -> None:
        if self.is_frozen:
            raise UserError(
                f"{name}={shown_value(value)}: this config is checked and frozen; pass overrides to load_config instead"
            )
        checked, pins = checked_value(name, value), _loading.get()[1]
        if name in pins:
            checked = pins[name]
        elif isinstance(value, list):
            checked = list(checked)  # a recipe may go on with its list: mcfg.classList += [...]; freezing makes a tuple
        is_other_word = name in WORDS and self.__dict__.get(name, checked) != checked
        object.__setattr__(self, name, checked)
        if is_other_word:
            self._set_fields_of(name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle look for their hooks this way
            raise AttributeError(name)
        raise UnknownField(unknown_field(name))

    def _set_fields_of(self, word: str) -> None:
        """A recipe's later lines may change what the word has set, and `--set` stands above both."""
        is_modern = getattr(self, word) == "modern"
        for name, value in WORDS[word].items():
            setattr(self, name, value if is_modern else _FIELDS[name].default)

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
        for name, value in sorted(values.items(), key=lambda item: item[0] not in WORDS):  # first: they set others
            setattr(mcfg, name, value)
        return mcfg.frozen()

    def with_values(self, **values: Any) -> "ModelConfig":
        """A frozen copy with other values in some fields. Raises `UserError` on an unknown or wrong field."""
        return ModelConfig.from_dict({**self.to_dict(), **values})


def base_names(mcfg: ModelConfig) -> tuple[str, ...] | None:
    """The names of baseClasses in the order of classList; None without groups, or while the classes are not known."""
    if mcfg.baseClasses is None or mcfg.classList is None or isinstance(mcfg.classList, str):
        return None
    if isinstance(mcfg.baseClasses, int):
        return tuple(mcfg.classList[: mcfg.baseClasses])
    return tuple(name for name in mcfg.classList if name in mcfg.baseClasses) or None


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
    value = typed_value(name, value)
    check = _FIELDS[name].metadata["check"]
    complaint = next(filter(None, map(checks.name_or_path, checks.texts_of(value))), None) or (check and check(value))
    if complaint:
        raise UserError(f"{name}={shown_value(value)}: {complaint}")
    return value


def typed_value(name: str, value: Any) -> Any:
    """`value` in the type of field `name`. Raises `UserError` for an unknown field and another type."""
    if name == "subsetMap" and value is None:
        value = {}
    if name == "phase" and isinstance(value, str):
        value = PHASE_ALIASES.get(value, value)
    return coerce(name, value, field_type(name))


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
    default = _FIELDS[name].default
    return checked_value(name, None if default is dataclasses.MISSING else default)  # a fresh dictionary for subsetMap


def field_type(name: str) -> Any:
    """A field's annotation. Raises `UserError` with the nearest right name for an unknown one."""
    if name not in _FIELDS:
        raise UnknownField(unknown_field(name))
    return _TYPES[name]


def unknown_field(name: str) -> str:
    """The sentence for a field that does not exist."""
    return f"{name}: no such config field{nearest(name, _FIELDS)}; `python mars.py --fields` lists them all"
