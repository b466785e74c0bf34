"""ModelConfig: every field that a recipe or `--set` can change, with its meaning, unit, default and check.

The spelling is that of the course assignment, so that its recipes load unchanged. An unknown field or a wrong value
raises an error in the line that sets it. `config.load` checks the whole config and freezes it.
"""

import dataclasses
from pathlib import Path

from config import checks
from config.checked import CheckedConfig
from config.checks import each, fraction, one_of, one_of_or_part, unless_none
from config.fields import declare
from config.names import OFFICIAL_WEIGHTS, PHASE_ALIASES, PHASES, base_names, start_from_drawings  # noqa: F401 (for recipes)
from config.parts import PartText, WordOrPart
from config.training import FEW_IMAGES  # noqa: F401 (for recipes)


@dataclasses.dataclass(eq=False)
class ModelConfig(CheckedConfig):
    """The settings of one run. A recipe may change them; `config.load` checks and freezes them."""

    # The run and where it computes
    cfgname: str = declare("", "the name on the command line, e.g. c1.nano.full; set by Mars", alters="nothing")
    runName: str = declare(
        "",
        "name of the run's folder below root; --name, else cfgname without the tags cuda@N and workers@N",
        checks.folder_name,
        alters="nothing",
    )
    root: str = declare(
        "", "folder that holds all runs, absolute; --root, else $MARS_ROOT, else ../mars-running", alters="nothing"
    )
    nobuf: bool = declare(
        False, "start from the first epoch: the folder of an older run is renamed instead of resumed", alters="nothing"
    )
    seed: int = declare(859, "random seed of initial weights, data order and augmentation", checks.seed)
    device: str = declare("auto", "where to compute: auto, cpu, cuda or cuda:N", checks.device_word, alters="nothing")
    cuda: bool = declare(True, "False: device=auto means the CPU, as in the course assignment", alters="nothing")
    dcore: int | None = declare(
        None,
        "number of loader processes; none: one per free core, at most 8",
        unless_none(checks.processes),
        alters="nothing",
    )

    # Data
    dataDir: str | None = declare(
        None,
        "folder of the data set, in any known layout; imageDir and annotationDir have precedence",
        checks.path,
        alters="data",
    )
    drawnScenes: int = declare(
        0,
        "number of images with aircraft that are generated in dataDir if they are missing; 0: none",
        checks.scenes,
        alters="data",
    )
    imageDir: str | None = declare(None, "folder with the images", checks.path, alters="data")
    annotationDir: str | None = declare(
        None, "folder with the annotations: xml, json or txt", checks.path, alters="data"
    )
    annotationFormat: WordOrPart | str = declare(
        "auto",
        "voc (Pascal VOC xml), coco (json), yolo (txt), or auto: the format that is found",
        one_of_or_part("auto", "voc", "coco", "yolo"),
        alters="data",
    )
    classList: tuple[str, ...] | str | None = declare(
        None,
        "class names in the order of their labels, or a file with one name per line; none: found in the data set",
        checks.classes,
        alters="data",
    )
    subsetMap: dict[str, tuple[str, ...] | str] = declare(
        dict, "split name -> image names, or a file with one name per line", checks.split_lists, alters="data"
    )
    suffix: str = declare(
        ".jpg", "suffix that is used if several image files differ in their suffix only", alters="data"
    )
    trainSplitName: str = declare("train", "split for training", checks.not_empty)
    validationSplitName: str = declare("validation", "split for validation after an epoch", checks.not_empty)
    testSplitName: str = declare("test", "split for evaluation at the end", checks.not_empty, alters="nothing")
    splitSeed: int = declare(
        859, "random seed of the splits where the data set defines none", checks.seed, alters="data"
    )
    smallShots: int | None = declare(
        None,
        "objects of each class in the split 'small', selected at random from 'train'; none: the list of the data set, "
        "or 10 where it has no list",
        unless_none(checks.objects),
        alters="data",
    )
    smallSeed: int = declare(0, "random seed of the split 'small', if it is not a list", checks.seed, alters="data")
    trainSelectedClasses: tuple[str, ...] | None = declare(
        None, "train with the labels of these classes only; none: all", checks.classes
    )
    testSelectedClasses: tuple[str, ...] | None = declare(
        None, "evaluate these classes only; none: all", checks.classes, alters="nothing"
    )
    baseClasses: int | tuple[str, ...] | None = declare(
        None,
        "classes that are learned first (the others are novel): their names, or how many of the first in classList; "
        "none: no groups",
        checks.base_classes,
    )
    unselectedImages: str = declare(
        "keep",
        "images without an object of the selected classes: keep as background (as in the assignment), or drop",
        one_of("keep", "drop"),
    )
    badFiles: str = declare(
        "stop",
        "unreadable images and annotations: stop and list them, or skip and count them",
        one_of("stop", "skip"),
        alters="data",
    )
    pixelMax: int | None = declare(
        None,
        "pixel value of 16-bit images that becomes white, 1 to 65535 (4095 for a 12-bit camera); none: found from the "
        "largest value in the images, or stored in the weights",
        unless_none(checks.sixteen_bits),
        alters="data",
    )

    # Network
    modelName: str = declare(
        "base", "base, or distillation (a student that learns from a teacher)", one_of("base", "distillation")
    )
    phase: str = declare(
        "nano", "size of the network: nano, small, medium, large or extra", one_of(*PHASES), aliases=PHASE_ALIASES
    )
    inputShape: tuple[int, int] = declare(
        (640, 640), "height and width of the network input in pixels", checks.multiple_of_32
    )
    regMax: int = declare(16, "bins of the distribution of each box side", checks.bins)
    keepHeadWidth: bool | None = declare(
        None,
        "channels of the class branch: True: as in the official weights for 80 classes (nano: 80 instead of 64), "
        "False: by the number of classes; none: as in the weights that training starts from",
    )
    block: PartText = declare("C2f()", "class of the blocks in backbone and neck: docs/extending.md")
    head: PartText = declare("DetectionHead()", "class of the head: docs/extending.md")
    pretrained: str | None = declare(
        None,
        "official weights to start from, by name: yolov8n, yolov8s, ...; downloaded once into resources/pretrained",
        unless_none(one_of(*OFFICIAL_WEIGHTS.values())),
    )
    pretrainedBackboneUrl: str | None = declare(
        None, "backbone weights to start from, as file:// address", unless_none(checks.file_address)
    )
    checkpointModelFile: str | None = declare(
        None, "weights of a whole network to start from; epochs are counted from startEpoch", checks.path
    )

    # Training
    training: str = declare(
        "assignment",
        "assignment, or modern: sets the training fields in config/training.py together",
        one_of("assignment", "modern"),
        alters="nothing",  # the fields that it sets alter the training
    )
    augmentation: str = declare(
        "assignment",
        "assignment (scale 0.25 to 2, jitter 0.3, flip, HSV), modern (mosaic, scale, translation, flip, HSV) or none",
        one_of("assignment", "modern", "none"),
    )
    mosaic: float = declare(1.0, "augmentation=modern: probability that four images are combined into one", fraction)
    closeMosaic: int = declare(
        10,
        "augmentation=modern: number of last epochs without mosaic, at most a third of maxEpoch",
        checks.epoch,
        alters="schedule",
    )
    scaleRange: float = declare(0.5, "augmentation=modern: the scale is between 1 - x and 1 + x", checks.scale_range)
    translate: float = declare(0.1, "augmentation=modern: largest shift, as a fraction of the input", fraction)
    flip: float = declare(
        0.5, "augmentation=modern: probability of a horizontal flip; use 0 where left and right matter", fraction
    )
    hsv: tuple[float, float, float] = declare(
        (0.015, 0.7, 0.4),
        "augmentation=modern: largest shift of the hue, as a fraction of the circle; saturation and value are "
        "multiplied by 1 - x to 1 + x",
        each(fraction),
    )
    flipVertical: float = declare(0.0, "augmentation=modern: probability of a vertical flip", fraction)
    rotate: float = declare(0.0, "augmentation=modern: largest rotation, in degrees", checks.degrees)
    shear: float = declare(0.0, "augmentation=modern: largest shear, in degrees", checks.shear)
    perspective: float = declare(0.0, "augmentation=modern: largest change of scale at an edge", checks.perspective)
    transforms: tuple[PartText, ...] = declare((), "more augmentations, in their order: docs/extending.md")
    startEpoch: int = declare(
        0, "first epoch, e.g. to continue from checkpointModelFile with another schedule", checks.epoch
    )
    maxEpoch: int = declare(200, "number of epochs, counted from 0", checks.epochs, alters="schedule")
    trainMinutes: float | None = declare(
        None,
        "time budget: after each epoch, plan how many of maxEpoch still fit, but not below trainMinEpochs; learning "
        "rate, mosaic and distillation follow the plan; none: no limit",
        unless_none(checks.minutes),
        alters="schedule",
    )
    trainMinEpochs: int = declare(
        10,
        "smallest number of epochs with trainMinutes; the training may then take longer",
        checks.epochs,
        alters="nothing",
    )
    batchSize: int = declare(16, "images per batch", checks.batch)
    nominalBatch: int | None = declare(
        None,
        "images per optimizer step: gradients of several batches are accumulated until this number, and weight decay "
        "is scaled by the ratio; none: one step per batch",
        unless_none(checks.images_per_step),
    )
    backboneFreezeEpochs: tuple[int, ...] = declare(
        (), "epochs in which weights and batch-norm statistics of the backbone are frozen", each(checks.epoch)
    )
    lossWeights: tuple[float, float, float] = declare(
        (7.5, 0.5, 1.5), "weights of the box, class and distribution losses", each(checks.gain)
    )
    lossParts: tuple[PartText, ...] = declare((), "more parts of the detection loss: docs/extending.md")
    lossReduction: str = declare(
        "mean",
        "mean: loss per image, as in the assignment; sum: multiplied by the batch size, as in Ultralytics",
        one_of("mean", "sum"),
    )
    talTopk: int = declare(10, "anchor points that are assigned to a ground-truth box (top-k)", checks.choices)
    talMinSide: float = declare(
        0.0,
        "box side in pixels to which smaller sides are enlarged in the test whether an anchor point lies inside",
        checks.pixels,
    )
    optimizerType: WordOrPart = declare(
        "SGD", "SGD (with Nesterov momentum), AdamW, or a class: docs/extending.md", one_of_or_part("SGD", "AdamW")
    )
    optimizerMomentum: float = declare(0.937, "momentum of SGD, or beta1 of AdamW", checks.momentum)
    optimizerWeightDecay: float = declare(5e-4, "weight decay, for convolution weights only", checks.decay)
    schedulerType: WordOrPart = declare(
        "COS",
        "COS (of the assignment: quadratic warm-up, half a cosine, a constant end), plateau (the same warm-up, then "
        "divided by ten when validation stops improving), linear or cosine (warm-up by steps, then down to "
        "minLearningRate), or a class: docs/extending.md",
        one_of_or_part("COS", "plateau", "linear", "cosine"),
    )
    baseLearningRate: float = declare(1e-2, "largest learning rate", checks.highest_rate, alters="schedule")
    minLearningRate: float = declare(1e-4, "learning rate of the last epochs", checks.rate, alters="schedule")
    warmupEpochs: float = declare(
        3.0, "schedulerType=linear or cosine: epochs of warm-up, at least 100 batches", checks.epoch
    )
    warmupMomentum: float = declare(
        0.8, "schedulerType=linear or cosine: momentum at the start of warm-up", checks.momentum
    )
    warmupBiasRate: float = declare(
        0.1, "schedulerType=linear or cosine: learning rate of biases at the start of warm-up", checks.rate
    )
    gradientClip: float = declare(10.0, "largest norm of the gradient; longer gradients are scaled down", checks.norm)
    useEMA: bool = declare(
        False, "keep an exponential moving average (EMA) of the weights, which is evaluated and saved as best"
    )
    emaRamp: float | None = declare(
        None,
        "ramp of the EMA decay in steps: decay = 0.9999 (1 - e^(-step / x)); Ultralytics uses 2000; none: smaller for "
        "short runs, so that the final EMA covers a tenth of all steps",
        unless_none(checks.steps),
    )
    precision: str = declare(
        "auto",
        "auto (the fastest type of the device), bfloat16, float16 (CUDA) or float32; losses are always float32; auto "
        "measures times, so two runs with one seed can differ: set a type to compare runs",
        one_of("auto", "bfloat16", "float16", "float32"),
    )
    onBadStep: str = declare(
        "stop",
        "after a non-finite step: stop (with a report on the operation that first produced the value), skip the batch, "
        "or rewind (load the last checkpoint that is finite on this batch, then skip it; at most three times)",
        one_of("stop", "skip", "rewind"),
        alters="nothing",
    )
    badStepsInARow: int = declare(
        10, "onBadStep=skip: stop after this number of consecutive non-finite steps", checks.steps, alters="nothing"
    )
    healthInterval: int = declare(
        100,
        "optimizer steps between two checks that weights and EMA are finite; they are also checked before every "
        "checkpoint",
        checks.steps,
        alters="nothing",
    )
    cacheImages: str = declare(
        "auto",
        "cache of decoded images: ram, disk, none, or auto (ram if they fit easily)",
        one_of("auto", "ram", "disk", "none"),
        alters="nothing",
    )

    # Validation, evaluation and pictures
    epochValidation: bool = declare(
        True, "validate after epochs and keep the best weights; False: the last weights are evaluated", alters="nothing"
    )
    validationInterval: int = declare(1, "number of epochs between two validations", checks.steps, alters="nothing")
    scoreThreshold: float = declare(0.001, "detections below this score are removed", fraction, alters="nothing")
    nmsIou: float = declare(
        0.7,
        "IoU of two detections of one class above which the one with the lower score is removed",
        fraction,
        alters="nothing",
    )
    maxDetections: int = declare(300, "largest number of detections per image", checks.choices, alters="nothing")
    apStyle: str = declare(
        "coco",
        "definition of AP: coco, voc07, ultralytics or assignment",
        one_of("coco", "voc07", "ultralytics", "assignment"),
        alters="nothing",
    )
    metrics: tuple[PartText, ...] = declare((), "more metrics: docs/extending.md", alters="nothing")
    minIou: float = declare(
        0.5,
        "IoU from which a painted detection is correct; also for apStyle=assignment",
        fraction,
        alters="nothing",
    )
    paintImages: bool = declare(False, "paint ground truth and detections into eval/SPLIT/images", alters="nothing")
    paintConf: float = declare(0.2, "smallest score of a painted detection", fraction, alters="nothing")

    # Distillation, and new classes for a trained detector
    teacherModelFile: str | None = declare(None, "weights of the teacher, or the folder of its run", checks.path)
    teacherClassIndexes: tuple[int, ...] | None = declare(
        None,
        "classes of the teacher, as indexes into classList; none: as stored in its file",
        unless_none(each(checks.label)),
    )
    distilling: str = declare(
        "assignment",
        "assignment, or modern: sets the distillation fields in config/training.py together",
        one_of("assignment", "modern"),
        alters="nothing",  # the fields that it sets alter the training
    )
    distilLossWeights: tuple[float, float, float] = declare(
        (1.0, 0.2, 0.01), "weights of the detection, CWD and response losses", each(checks.gain)
    )
    distilParts: tuple[PartText, ...] = declare((), "more distillation losses: docs/extending.md")
    boxResponseWeight: float = declare(
        0.0, "weight of the loss on the box distributions, relative to the response loss", checks.gain
    )
    distilFeatures: tuple[str, ...] = declare(
        ("feat0", "feat1", "feat2", "feat3", "C", "X", "Y", "Z"),
        "feature maps for CWD: feat0 to feat3 of the backbone, C, X, Y, Z of the neck",
        checks.feature_maps,
    )
    responseMode: str = declare(
        "softmax",
        "response loss: softmax over the classes, as in the assignment, or binary (each class by itself)",
        one_of("binary", "softmax"),
        aliases={"seed": "softmax"},
    )
    distilEpochs: tuple[int, ...] = declare((), "epochs with distillation; empty: all", each(checks.epoch))
    distilSchedule: str = declare(
        "constant",
        "weight of the distillation losses over the epochs: constant, or cosine (down to zero)",
        one_of("constant", "cosine"),
    )
    distilSelectedClasses: tuple[str, ...] | None = declare(
        None, "classes whose labels the student is trained with; none: all", checks.classes
    )
    unlabelledClasses: str = declare(
        "background",
        "objects of classes without labels: background (they count as background), mask (the loss ignores their "
        "classes on these images), or pseudo (mask, with the teacher's detections as labels)",
        one_of("background", "mask", "pseudo"),
    )
    pseudoScore: float = declare(
        0.5, "unlabelledClasses=pseudo: smallest score of a detection that becomes a label", fraction
    )
    replayImages: int = declare(
        0,
        "images of the split 'train' that a student is trained with again, with labels of baseClasses, balanced over "
        "the classes; a smaller training split is repeated until it is about half of an epoch",
        checks.images,
    )
    temperature: float = declare(
        2.0, "temperature of the softmax in the distillation losses; larger is softer", checks.softness
    )

    @property
    def run_dir(self) -> Path:
        """The run's folder, ROOT/NAME."""
        return Path(self.root) / self.runName


# Short names for other modules.
field_names = ModelConfig.field_names
field_doc = ModelConfig.field_doc
field_alters = ModelConfig.field_alters
field_default = ModelConfig.field_default
field_type = ModelConfig.field_type
standard_word = ModelConfig.standard_word
typed_value = ModelConfig.typed_value
checked_value = ModelConfig.checked_value
