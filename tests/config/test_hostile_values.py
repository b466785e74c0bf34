"""Any text in any option and any field: a value or one `UserError`, quickly; what is accepted can also be built."""

import contextlib
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commands.arguments import COMMANDS, read_arguments
from config.checks import LONGEST_NAME, LONGEST_PATH, LONGEST_RUN_NAME, MOST_CLASSES
from config.errors import UserError
from config.fields import MOST_EPOCHS
from config.load import absolute, load_config, parse_settings
from config.mconfig import ModelConfig, field_names
from config.recipes import CODE_DIR

HUGE = [
    "-1", "0", "1", "1e308", "1e-308", str(10**30), str(2**63), str(2**63 - 1), "inf", "-inf", "nan", "9" * 5_000, "",
    "x" * 5_000, "３", "0-9999999999", "9-0", "0-99999", "1," * 20_000, "none", "../x", "a/b", "~nosuchuser/x", "\0",
    "\ud800", "\x1b[2J", "a:b", ":", "a:~nosuchuser/x", "{root}", "{phase", "$a$", "%s", "cuda:999", "file://",
]  # fmt: skip
TEXTS = st.sampled_from(HUGE) | st.text(max_size=12)
OPTIONS = [
    "root", "data", "name", "split", "weights", "out", "format", "shots", "share", "seed", "from", "draws", "ways",
    "methods", "replay", "set", "quiet", "fields", "nms", "novel-only", "trace", "nobuf",
]  # fmt: skip
# What stands beside a field so that no other field contradicts it.
BESIDE = {
    **{
        name: {"augmentation": "modern"} for name in ("mosaic", "closeMosaic", "scaleRange", "translate", "flip", "hsv")
    },
    **{key: {"schedulerType": "linear"} for key in ("warmupEpochs", "warmupMomentum", "warmupBiasRate")},
    "badStepsInARow": {"onBadStep": "skip"},
    "startEpoch": {"maxEpoch": MOST_EPOCHS},
    "minLearningRate": {"baseLearningRate": 10.0},
}


def loaded(field: str, text: str) -> ModelConfig:
    overrides = {"classList": ["a", "b"], **BESIDE.get(field, {}), **parse_settings([f"{field}={text}"])}
    return load_config("demo.nano", root="/runs", overrides=overrides)


def assert_one_sentence(error: UserError) -> None:
    assert "\n" not in str(error) and len(str(error)) < 1500, error


def assert_read_or_refused(read, *words, **options) -> None:
    try:
        read(*words, **options)
    except UserError as error:  # anything else that is raised fails the test
        assert_one_sentence(error)


@given(st.sampled_from(field_names()), TEXTS)
@settings(max_examples=100)
def test_any_text_in_any_field(field, text):
    assert_read_or_refused(loaded, field, text)


@given(
    st.sampled_from(list(COMMANDS)), st.lists(st.sampled_from([f"--{name}" for name in OPTIONS]) | TEXTS, max_size=5)
)
@settings(max_examples=100)
def test_any_words(mode, words):
    with contextlib.suppress(SystemExit):  # after the help
        assert_read_or_refused(read_arguments, [mode, *words])


@given(st.sampled_from(OPTIONS), TEXTS, st.sampled_from(list(COMMANDS)))
@settings(max_examples=100)
def test_any_text_behind_any_option(option, text, mode):
    with contextlib.suppress(SystemExit):  # after the help
        assert_read_or_refused(read_arguments, [mode, "c1", f"--{option}", text])


@given(st.text(max_size=30) | st.sampled_from(HUGE).map("c1.{}".format))
@settings(max_examples=100)
def test_any_cfgname(cfgname):
    assert_read_or_refused(load_config, cfgname, root="/runs")


@pytest.mark.parametrize("field", field_names())
def test_values_of_a_recipe_that_no_text_can_hold(field):
    """Whole numbers beyond float and beyond Python's limit of digits, endless iterators, halves of characters."""
    mcfg = ModelConfig()
    of_python = [10**400, -(10**5_000), 1e308, math.inf, "\ud800", {"a": 10**5_000}, object(), (1, "a"), b"x"]
    for value in [*of_python, range(10**12), itertools.count()]:
        assert_read_or_refused(setattr, mcfg, field, value)
        mcfg.frozen().to_dict()


@pytest.mark.parametrize(
    ("field", "accepted", "refused", "reason"),
    [
        ("seed", str(2**63 - 1), str(2**63), "64 bits"),
        ("dcore", "1024", "1025", "no machine has that many cores"),
        ("inputShape", "4096", "1000000000", "do not fit into memory"),
        ("inputShape", "16384,32", "16416,32", "at most 16384"),
        ("regMax", "256", "257", "wider than any input"),
        ("talTopk", "100000", "1000000", "anchor points"),
        ("maxEpoch", "10000", "1000000000000", "at most 100,000"),
        ("backboneFreezeEpochs", "0-9999,99999", "0-100000", "holds more than 100,000 values"),
        ("backboneFreezeEpochs", "9-9", "9-0", "the range 9-0 runs backwards; write 0-9"),
        ("teacherClassIndexes", "0-1", "1-0", "the range 1-0 runs backwards; write 0-1"),
        ("batchSize", "4096", "1000000000", "fits into no memory"),
        ("nominalBatch", "65536", str(10**30), "no data set has more images"),
        ("baseLearningRate", "100000", "1e308", "larger than any weight"),
        ("optimizerWeightDecay", "1000", "1001", "turn the sign"),
        ("gradientClip", "1e9", "1e308", "clips nothing"),
        ("warmupEpochs", "1000", "1e308", "no training has more epochs"),
        ("lossWeights", "1000000,0,1", "1e308,1,1", "overflow"),
        ("temperature", "0.01", "1e-308", "between 0.01 and 1000"),
        ("trainMinutes", "10000", "1e308", "a year"),
        ("device", "cuda:15", "cuda:３", "cuda:N"),
        ("seed", "３", "三", "a whole number"),
        ("runName", "a" * LONGEST_RUN_NAME, "a" * (LONGEST_RUN_NAME + 1), "200 bytes"),
        ("runName", "飞" * 66, "飞" * 67, "200 bytes"),
        ("trainSplitName", "训练", "a\nb", "a line break"),
        ("classList", "飞机,$a$b", "a,b\x1b", "a control character"),
        ("subsetMap", "train:a", ":a", "without a name"),
    ],
)
def test_a_limit_says_why_and_what_is_in_use_passes(field, accepted, refused, reason):
    loaded(field, accepted)
    with pytest.raises(UserError, match=reason) as caught:
        loaded(field, refused)
    assert str(caught.value).startswith(f"{field}=")


def test_a_long_range_is_told_from_a_wrong_type():
    with pytest.raises(UserError) as caught:
        setattr(ModelConfig(), "backboneFreezeEpochs", range(10**6))  # noqa: B010 (another type than declared)
    told = "holds more than 100,000 values, the most that a list may have; write a shorter one"
    assert str(caught.value) == f"backboneFreezeEpochs=range(0, 1000000): {told}"


def test_a_large_class_list_passes_and_is_checked_quickly():
    """Counted once; to count every name in the list took minutes for twenty thousand names."""
    names = tuple(f"class {number}" for number in range(MOST_CLASSES))
    assert load_config("c1", root="/runs", overrides={"classList": names}).classList == names
    with pytest.raises(UserError, match="names class 7 more than once"):
        ModelConfig(classList=(*names[:-1], "class 7"))


@pytest.mark.parametrize(
    "field",
    [
        "seed", "maxEpoch", "batchSize", "inputShape", "regMax", "lossWeights", "talTopk", "baseLearningRate",
        "optimizerMomentum", "optimizerWeightDecay", "warmupEpochs", "warmupBiasRate", "temperature", "nominalBatch",
    ],
)  # fmt: skip
@pytest.mark.usefixtures("narrow_networks")
def test_what_is_accepted_can_be_built(field):
    """The largest and the smallest values that a config takes raise nothing in the parts that are made of it."""
    from model import build_model
    from train.loss import DetectionLoss
    from train.opt import build_optimizer
    from train.sched import build_schedule, build_warm_up

    numbers = ["0", "1", "1e-308", "1e6", "1e9", "10", "1000", "100000", "65536", "8192", "256", "0.999999999",
               str(2**63 - 1), "1e6,1e6,1e6", "0,0,0"]  # fmt: skip
    built = 0
    for text in numbers:
        for kind in ("SGD", "AdamW"):
            try:
                mcfg = loaded(field, text).with_values(optimizerType=kind)
            except UserError:
                continue
            model = build_model(mcfg)
            DetectionLoss.from_config(mcfg, model)
            build_optimizer(mcfg, model)
            schedule = build_schedule(mcfg)
            rates = [schedule.rate(epoch) for epoch in (0, 1, mcfg.maxEpoch - 1)]
            pace = build_warm_up(mcfg, 10**6).pace(1, rates[1])
            assert all(map(math.isfinite, (*rates, *pace)))
            built += 1
    assert built >= 2


# Paths


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("~nosuchuser/x", "there is no user 'nosuchuser'"),
        ("a" * (LONGEST_NAME + 1), "longer than a path of 3,000 bytes with names of 255 bytes"),
        ("飞" * 86, "longer than"),
        ("a/" * LONGEST_PATH, "longer than"),
        ("a\0b", "a control character"),
        ("a\nok data: every file was read", "a line break"),
        ("a\u2028b", "a line break"),
        ("a\x1b[2J", "a control character"),
        ("a\udcff", "bytes that are not UTF-8"),
    ],
)
def test_paths_that_no_file_can_have_or_no_log_can_show(path, reason):
    with pytest.raises(UserError, match=reason) as caught:
        absolute(path)
    assert_one_sentence(caught.value)


@pytest.mark.parametrize(("name", "reason"), [(b"a\xff", "bytes that are not UTF-8"), (b"a\nb", "a line break")])
def test_a_working_directory_that_no_log_can_show(tmp_path, monkeypatch, name, reason):
    folder = os.fsencode(tmp_path) + b"/" + name
    os.mkdir(folder)
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=f"the name of the working directory holds .*{reason}") as caught:
        absolute("x")
    assert_one_sentence(caught.value)


def test_the_folder_above_a_link_is_the_systems(tmp_path, monkeypatch):
    """`link/..` is not the folder that the link lies in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "inner")
    (tmp_path / "far" / "file").write_text("far")
    for path in ("link/../file", "./link/../inner/../file", f"{tmp_path}/link/../file", "far/./file", "far//file"):
        assert absolute(path) == str(tmp_path / "far" / "file") and Path(path).read_text() == "far"
    assert absolute("link/file") == str(tmp_path / "link" / "file"), "other links are kept"
    assert absolute("..") == str(tmp_path.parent) and absolute("new/../file") == str(tmp_path / "file")


def test_a_locale_that_lacks_the_letters_is_named():
    """Python then hands out the bytes of 飞机 as halves of characters, as for names that are no UTF-8."""
    code = "import sys; from config.checks import printable; print(*map(printable, sys.argv[1:]), sep='\\n')"
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    words = ["飞机".encode(), b"a\xff", "飞\n".encode()]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment, cwd=CODE_DIR, capture_output=True, text=True, check=True
    )
    locale, other, broken = done.stdout.splitlines()
    assert locale.startswith("holds letters that this locale (") and locale.endswith(
        "set PYTHONUTF8=1, or another locale"
    )
    assert "bytes that are not UTF-8" in other and "PYTHONUTF8" not in broken


def test_long_and_foreign_paths_pass(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("a" * LONGEST_NAME, "飞机/图片 1", "a/" * 1_000, "$a$ %s {x}"):
        assert absolute(path) == str(tmp_path / path)
    assert absolute("~") == str(CODE_DIR.home())
