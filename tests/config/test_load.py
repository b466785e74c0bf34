"""From a CFGNAME to a config: precedence, names, places, and the sentence that every mistake gets."""

import copy
import json
import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from commands.options import closing_text
from config.errors import UserError
from config.load import load_config
from config.mconfig import ModelConfig
from config.recipes import CODE_DIR

RECIPES = Path(__file__).parent / "recipes"


@pytest.fixture(autouse=True)
def _no_root_from_outside(monkeypatch):
    monkeypatch.delenv("MARS_ROOT", raising=False)


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe named r from the lines of its mcfg(tags); the folder it lies in."""

    def write(body: str, head: str = "") -> Path:
        folder = tmp_path / "recipes"
        folder.mkdir(exist_ok=True)
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        start = f"from config import mconfig\n{head}\n\ndef mcfg(tags):\n    mcfg = mconfig.ModelConfig()\n"
        (folder / "r.py").write_text(f"{start}{lines}\n    return mcfg\n")
        return folder

    return write


def refused(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        load_config(*args, **kwargs)
    return str(caught.value)


# Precedence


def test_default_recipe_tag_override(recipe):
    folder = recipe("mcfg.batchSize = 4\nmcfg.maxEpoch = 5")
    assert load_config("r", recipe_dir=folder).batchSize == 4
    assert load_config("r.batch@8", recipe_dir=folder).batchSize == 8
    assert load_config("r.batch@8", overrides={"batchSize": 12}, recipe_dir=folder).batchSize == 12
    assert load_config("r.batch@8", recipe_dir=folder).maxEpoch == 5
    assert load_config("r", recipe_dir=folder).inputShape == (640, 640)


def test_what_a_recipe_computes_follows_tags_and_overrides(recipe):
    folder = recipe(
        "mcfg.phase = 'nano'\n"
        "mcfg.pretrainedBackboneUrl = f'file:///w/backbone_{mcfg.phase}.pth'\n"
        "mcfg.minLearningRate = mcfg.baseLearningRate * 0.01"
    )
    mcfg = load_config("r.large", overrides={"baseLearningRate": 0.5}, recipe_dir=folder)
    assert mcfg.pretrainedBackboneUrl == "file:///w/backbone_large.pth"
    assert mcfg.minLearningRate == 0.005


def test_the_pins_of_one_loading_do_not_leak(recipe):
    load_config("r.large", recipe_dir=recipe(""))
    assert ModelConfig().phase == "nano"


def test_a_config_made_when_the_recipe_is_imported_obeys_tags_too(recipe):
    folder = recipe("mcfg = MADE", head="MADE = mconfig.ModelConfig()")
    assert load_config("r.batch@3", recipe_dir=folder).batchSize == 3


@pytest.mark.parametrize(
    ("tag", "field", "value"),
    [
        ("nano", "phase", "nano"),
        ("extra", "phase", "extra"),
        ("extended", "phase", "extra"),
        ("cuda@1", "device", "cuda:1"),
        ("batch@32", "batchSize", 32),
        ("epochs@7", "maxEpoch", 7),
        ("size@320", "inputShape", (320, 320)),
        ("size@384x640", "inputShape", (384, 640)),
        ("seed@0", "seed", 0),
        ("workers@0", "dcore", 0),
    ],
)
def test_phase_and_value_tags(tag, field, value):
    assert getattr(load_config(f"c1.{tag}"), field) == value


def test_a_config_made_before_the_loading_obeys_tags_too(recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "made_before", SimpleNamespace(MADE=ModelConfig(batchSize=5)))
    mcfg = load_config("r.batch@3", recipe_dir=recipe("mcfg = MADE", head="from made_before import MADE"))
    assert mcfg.batchSize == 3
    assert mcfg.root == str(CODE_DIR.parent / "mars-running")


def test_data_wins_over_places_in_the_recipe_and_overrides_over_data(recipe, tmp_path):
    folder = recipe("mcfg.imageDir = '/a'\nmcfg.annotationDir = '/b'\nmcfg.subsetMap = {'train': '/c.txt'}")
    mcfg = load_config("r", data=tmp_path, recipe_dir=folder)
    assert (mcfg.dataDir, mcfg.imageDir, mcfg.annotationDir, mcfg.subsetMap) == (str(tmp_path), None, None, {})
    found = {"imageDir": "/found", "subsetMap": {"train": ["x", "y"]}}
    mcfg = load_config("r", data=tmp_path, overrides=found, recipe_dir=folder)
    assert (mcfg.imageDir, mcfg.annotationDir, mcfg.subsetMap) == ("/found", None, {"train": ("x", "y")})


# Names and places


@pytest.mark.parametrize(
    ("cfgname", "run_name"),
    [
        ("c1.nano.full", "c1.nano.full"),
        ("c1.nano.full.cuda@0", "c1.nano.full"),
        ("c1.workers@4.nano.cuda@1.full", "c1.nano.full"),
        ("c1.extended.teacher", "c1.extra.teacher"),
        ("c1.nano.batch@8.seed@3", "c1.nano.batch@8.seed@3"),
    ],
)
def test_run_name(cfgname, run_name):
    assert load_config(cfgname).runName == run_name


def test_run_name_of_voc_and_by_hand(tmp_path, monkeypatch):
    assert load_config("voc.nano.full.cuda@0", data=tmp_path / "bccd").runName == "voc.nano.full-bccd"
    monkeypatch.chdir(tmp_path)
    assert load_config("voc.nano", data=".").runName == f"voc.nano-{tmp_path.name}"
    assert load_config("voc.nano", data="/").runName == "voc.nano"
    assert load_config("voc.nano", data="bccd", name="mine-").runName == "mine-"


def test_root(tmp_path, monkeypatch, recipe):
    assert load_config("c1").root == str(CODE_DIR.parent / "mars-running")
    monkeypatch.setenv("MARS_ROOT", str(tmp_path / "env"))
    assert load_config("c1").root == str(tmp_path / "env")
    assert load_config("c1", root=tmp_path / "given").root == str(tmp_path / "given")
    assert load_config("r", recipe_dir=recipe("mcfg.root = '/recipes/own'")).root == "/recipes/own"
    monkeypatch.setenv("MARS_ROOT", "")
    assert load_config("c1").root == str(CODE_DIR.parent / "mars-running")
    monkeypatch.chdir(tmp_path)
    mcfg = load_config("c1.nano", root="runs")
    assert mcfg.run_dir == tmp_path / "runs" / "c1.nano"


def test_paths_are_filled_in_and_absolute(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    folder = recipe(
        "mcfg.dataDir = '{root}/sets/{phase}'\nmcfg.imageDir = 'images'\nmcfg.teacherModelFile = '~/t.pth'\n"
        "mcfg.subsetMap = {'train': 'a/train.txt', 'test': ['one', 'two']}\n"
        "mcfg.pretrainedBackboneUrl = 'file://{root}/b_{phase}.pth'"
    )
    mcfg = load_config("r.small", root="/runs", recipe_dir=folder)
    assert mcfg.dataDir == "/runs/sets/small"
    assert mcfg.imageDir == str(tmp_path / "images")
    assert mcfg.teacherModelFile == "/home/someone/t.pth"
    assert mcfg.subsetMap == {"train": str(tmp_path / "a/train.txt"), "test": ("one", "two")}
    assert mcfg.pretrainedBackboneUrl == "file:///runs/b_small.pth"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe", "cannot be read as a class list"),
        (b"cat\0", "holds a control character"),
        (b"a\x1b[2Jb", "holds a control character"),
        (b"a\na\n", "names a more than once"),
        (b"x" * 201, "1 to 200 letters"),
        (b"a\n" * 20_001, "20,001 classes"),
        (b"a\n" * 8_000_001, "has 16,000,002 bytes, but a class list has at most 16,000,000"),
    ],
)
def test_class_lists_that_cannot_be_meant(tmp_path, content, words):
    file = tmp_path / "classes.txt"
    file.write_bytes(content)
    message = refused("c1", overrides={"classList": str(file)})
    assert message.startswith((f"classList={file}: ", f"{file}: "))
    assert words in message and message.isprintable()


def test_class_list_from_a_file(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_bytes("\ufeffcat\r\n\r\n  big dog \r\n".encode())
    assert load_config("c1", overrides={"classList": str(file)}).classList == ("cat", "big dog")
    file.write_text("\n\n")
    assert "must name at least one class" in refused("c1", overrides={"classList": str(file)})
    assert str(tmp_path / "none.txt") in refused("c1", overrides={"classList": str(tmp_path / "none.txt")})


# What comes out


def test_the_config_is_frozen_and_travels(tmp_path):
    mcfg = load_config("voc.nano", data=tmp_path, overrides={"subsetMap": {"train": ["a", "b"]}, "classList": ["x"]})
    with pytest.raises(UserError, match="batchSize=1: this config is checked and frozen"):
        mcfg.batchSize = 1
    with pytest.raises(UserError, match="frozen"):
        mcfg.subsetMap["test"] = ("c",)
    with pytest.raises(UserError, match="frozen"):
        mcfg.subsetMap.update(test=("c",))
    for other in (
        copy.deepcopy(mcfg),
        pickle.loads(pickle.dumps(mcfg)),
        ModelConfig.from_dict(json.loads(json.dumps(mcfg.to_dict()))),
    ):
        assert other.to_dict() == mcfg.to_dict()
        assert other.is_frozen
        assert other.subsetMap == {"train": ("a", "b")}


# Recipes of the assignment


def test_an_assignment_recipe_loads_unchanged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mcfg = load_config("assignment.nano.distillation.cuda@0", recipe_dir=RECIPES)
    assert mcfg.modelName == "distillation"
    assert mcfg.teacherModelFile == "/auto/mars/c1.nano.teacher/__cache__/best_weights.pth"
    assert mcfg.distilLossWeights == (1.0, 0.05, 0.001)
    assert mcfg.backboneFreezeEpochs == tuple(range(25))
    assert mcfg.teacherClassIndexes == tuple(range(10))
    assert mcfg.imageDir == os.path.join(tmp_path, "mar20/images")
    assert mcfg.subsetMap["small"] == os.path.join(tmp_path, "mar20/splits/v5/small.txt")
    small = load_config("assignment.small.full", recipe_dir=RECIPES)
    assert small.pretrainedBackboneUrl == "file:///auto/mars/resources/pretrained/backbone/backbone_small.pth"
    assert load_config("assignment.nano.teacher", recipe_dir=RECIPES).trainSelectedClasses == tuple(
        f"A{n}" for n in range(1, 11)
    )


def test_a_students_recipe_loads_unchanged():
    mcfg = load_config("student.medium.gpu.longer", recipe_dir=RECIPES)
    assert mcfg.classList == tuple(f"A{number}" for number in range(1, 21))
    assert mcfg.device == "cuda:0"
    assert mcfg.minLearningRate == pytest.approx(2e-4)
    assert mcfg.schedulerType == "plateau"
    assert mcfg.backboneFreezeEpochs == (151, 152, 153, 154, 155)
    assert (mcfg.startEpoch, mcfg.maxEpoch, mcfg.temperature) == (151, 400, 2.0)
    assert mcfg.testSelectedClasses == tuple(f"A{number}" for number in range(1, 12))
    assert str(mcfg.pretrainedBackboneUrl).endswith("/backbone_medium.pth")
    assert set(mcfg.subsetMap) == {"train"}
    assert load_config("student", recipe_dir=RECIPES).device == "cpu"


# Tags


def test_an_unknown_tag_lists_what_the_recipe_tests():
    message = refused("assignment.nano.ful", recipe_dir=RECIPES)
    assert "tag 'ful': unknown (did you mean 'full'?)" in message
    assert "assignment knows distillation, full, teacher;" in message
    assert "nano small medium large extra" in message
    assert "cuda@N" in message


def test_both_sides_of_a_short_circuit_are_known():
    assert load_config("student.long.longer", recipe_dir=RECIPES).maxEpoch == 400


def test_an_unknown_tag_is_found_beside_known_ones():
    assert "tag 'emma': unknown (did you mean 'ema'?)" in refused("c1.nano.full.emma")
    assert "c1 knows full, teacher, distillation, backbone, drawn, assignment, modern, ema;" in refused(
        "c1.nano.full.emma"
    )
    assert "did you mean 'nano'" in refused("c1.Nano")


@pytest.mark.parametrize(
    "test",
    [
        "if 'fast' in tags: mcfg.maxEpoch = 3",
        "if tags[0] == 'fast': mcfg.maxEpoch = 3",
        "mcfg.maxEpoch = 3 if set(tags) & {'fast'} else 5",
        "mcfg.maxEpoch = 3 if any(tag.startswith('fa') for tag in tags) else 5",
        "mcfg.maxEpoch = {'fast': 3}.get(tags[0], 5)",
        "mcfg.maxEpoch = 5 if tags[0] != 'fast' else 3",
        "if tags.count('fast') == 1: mcfg.maxEpoch = 3",
        "if any(tag in ('fast', 'faster') for tag in tags): mcfg.maxEpoch = 3",
        "if len(tags) == 1 and 'fast' in tags: mcfg.maxEpoch = 3",
        "mcfg.maxEpoch = 3 if sum(tag in tags for tag in ('fast', 'faster')) else 5",
        "chosen = [tag for tag in SPEEDS if tag in tags]\nif chosen: mcfg.maxEpoch = 3",
        "chosen = list(tags)\nif 'fast' in chosen: mcfg.maxEpoch = 3",
        "if has(tags, 'fast'): mcfg.maxEpoch = 3",
        "if is_fast(tags): mcfg.maxEpoch = 3",
        "for tag in tags: mcfg.maxEpoch = SPEEDS[tag]",
        "match tags:\n    case ['fast']: mcfg.maxEpoch = 3",
        "if tags[0].lower() == 'fast': mcfg.maxEpoch = 3",
    ],
)
def test_every_form_of_test_is_read_and_a_typo_never_passes(recipe, caplog, test):
    head = (
        "SPEEDS = {'fast': 3, 'faster': 2}\n"
        "def has(given, word): return word in given\n"
        "def is_fast(words): return 'fast' in words\n"
    )
    folder = recipe(test, head)
    assert load_config("r.fast", recipe_dir=folder).maxEpoch == 3
    assert "tag 'slow': unknown" in refused("r.slow", recipe_dir=folder)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("body", "head", "line"),
    [
        ("if hash(tags[0]) % 2: mcfg.seed = 1", "", 6),
        ("if shlex.join(tags) == FAST: mcfg.seed = 1", "import shlex\nfrom string import digits as FAST", 7),
        ("if TABLE.get(tags[0]): mcfg.seed = 1", "TABLE = dict(zip(range(3), range(3)))", 6),
        ("if re.match('an+', tags[0]): mcfg.seed = 1", "import re", 6),
        ("if tags[-1].endswith('ny'): mcfg.seed = 1", "", 6),
        ("if 'ny' in ' '.join(tags): mcfg.seed = 1", "", 6),
    ],
)
def test_a_test_that_the_syntax_tree_does_not_show_is_accepted_with_a_warning(recipe, caplog, body, head, line):
    folder = recipe(body, head)
    assert load_config("r.any", recipe_dir=folder).cfgname == "r.any"
    assert f"tag 'any': cannot be checked, because {folder / 'r.py'}, line {line}, tests tags in a way" in caplog.text
    assert "TAGS = {'any': " in caplog.text
    load_config("r.any", recipe_dir=folder)  # commands load their config several times
    assert caplog.text.count("cannot be checked") == 1
    declaring = recipe(body, f"{head}\nTAGS = {{'any': 'declared'}}")
    caplog.clear()
    assert load_config("r.any", recipe_dir=declaring).cfgname == "r.any"
    assert caplog.text == ""


@pytest.mark.parametrize(
    "line", ["mcfg.runName = '-'.join(tags)", "words = []; words.extend(tags)", "LOG.info('slow', tags)"]
)
def test_a_call_that_tests_no_tag_adds_none(recipe, caplog, line):
    folder = recipe(f"{line}\nif 'fast' in tags: mcfg.maxEpoch = 3", "import logging\nLOG = logging.getLogger('r')")
    message = refused("r.slow", recipe_dir=folder)
    assert "tag 'slow': unknown; r knows fast; " in message and "declare it in" in message
    assert caplog.text == ""


def test_a_recipe_that_takes_its_function_from_another_is_accepted_with_a_warning(tmp_path, caplog):
    (tmp_path / "r.py").write_text("from cfgops.c1 import mcfg\n")
    assert load_config("r.full", recipe_dir=tmp_path).maxEpoch == 200
    assert "tag 'full': cannot be checked" in caplog.text


def test_a_recipe_runs_once_and_gets_plain_words(recipe):
    body = "RUNS.append(tags)\nmcfg.seed = len(RUNS)\nassert [type(tag) for tag in tags] == [str, str]"
    folder = recipe(body, head="RUNS = []\nTAGS = {'full': ''}")
    assert load_config("r.full.nano", recipe_dir=folder).seed == 1


def test_declared_tags_are_known_and_listed(recipe):
    folder = recipe("", head="TAGS = {'odd': 'tested in a way that cannot be seen'}")
    assert load_config("r.odd", recipe_dir=folder).cfgname == "r.odd"
    assert "r knows odd;" in refused("r.even", recipe_dir=folder)


def test_a_recipe_without_tags_says_so(recipe):
    assert "r has no tags of its own" in refused("r.full", recipe_dir=recipe(""))


# Mistakes: field, value and the way out in one sentence


@pytest.mark.parametrize(
    ("cfgname", "words"),
    [
        ("c1.nano.small", ["'nano' and 'small'", "phase"]),
        ("c1.batch@8.batch@16", ["'batch@8' and 'batch@16'", "batchSize"]),
        ("c1.batch@x", ["batch@x", "whole number", "batch@2"]),
        ("c1.batch@", ["batch@", "whole number"]),
        ("c1.batch@0", ["batch@0", "batchSize=0", "above 0"]),
        ("c1.cuda@-1", ["cuda@-1", "whole number", "cuda@0"]),
        ("c1.size@100", ["size@100", "multiples of 32", "96,96"]),
        ("c1.size@640x", ["size@640x", "size@384x640"]),
        ("c1.epoch@3", ["epoch@3", "did you mean 'epochs'", "workers@N"]),
        ("c1..full", ["nothing between two dots"]),
        ("", ["c1.nano.full"]),
        ("c1/full", ["dots between"]),
        ("../c1", ["dots between"]),
        ("c2.nano", ["c2: no such recipe", "c1, demo, voc"]),
        ("vox.nano", ["did you mean 'voc'"]),
        ("voc.nano", ["--data DIR"]),
        ("c1.full.teacher", ["keep one of these tags"]),
    ],
)
def test_bad_cfgnames(cfgname, words):
    message = refused(cfgname)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"maxEpochs": 3}, ["maxEpochs", "did you mean 'maxEpoch'"]),
        ({"maxEpoch": "ten"}, ["maxEpoch='ten'", "whole number", "str"]),
        ({"maxEpoch": True}, ["maxEpoch=True", "whole number"]),
        ({"maxEpoch": 2.5}, ["maxEpoch=2.5", "whole number"]),
        ({"baseLearningRate": float("nan")}, ["baseLearningRate=nan", "a number"]),
        ({"useEMA": 1}, ["useEMA=1", "true or false"]),
        ({"classList": {"a", "b"}}, ["classList=", "list of names"]),
        ({"classList": ["a", "a"]}, ["names a more than once"]),
        ({"classList": []}, ["at least one class"]),
        ({"inputShape": 100}, ["inputShape=(100, 100)", "multiples of 32", "96,96"]),
        ({"inputShape": (640, 0)}, ["inputShape=(640, 0)", "multiples of 32"]),
        ({"lossWeights": (1, 2)}, ["lossWeights=(1, 2)", "3 values"]),
        ({"lossWeights": (1, -2, 1)}, ["lossWeights=(1.0, -2.0, 1.0)", "must not be negative"]),
        ({"device": "gpu"}, ["device='gpu'", "cuda:N"]),
        ({"schedulerType": "cosin"}, ["schedulerType='cosin'", "COS, plateau", "did you mean 'cosine'"]),
        ({"phase": "huge"}, ["phase='huge'", "nano, small"]),
        ({"modelName": "distillation"}, ["modelName=distillation", "teacherModelFile"]),
        ({"baseLearningRate": 1e-5}, ["minLearningRate=0.0001", "baseLearningRate=1e-05"]),
        ({"startEpoch": 200}, ["startEpoch=200", "maxEpoch=200", "raise maxEpoch"]),
        ({"trainSelectedClasses": ["A21"]}, ["trainSelectedClasses=A21", "not in classList", "A20"]),
        ({"testSelectedClasses": ["a1"]}, ["testSelectedClasses=a1", "did you mean 'A1'"]),
        ({"teacherClassIndexes": [0, 20]}, ["teacherClassIndexes=20", "0 to 19"]),
        ({"pretrainedBackboneUrl": "https://x/y.pth"}, ["https://x/y.pth", "download", "file:///"]),
        ({"pretrainedBackboneUrl": "/x/y.pth"}, ["file:///x/y.pth"]),
        ({"runName": "a/b"}, ["runName='a/b'", "--root"]),
        ({"runName": ".."}, ["runName='..'", "folder name"]),
        ({"cfgname": "x"}, ["cfgname='x'", "cannot be set"]),
        ({"imageDir": ""}, ["imageDir=''", "must not be empty"]),
        ({"scoreThreshold": 2}, ["scoreThreshold=2.0", "between 0 and 1"]),
        ({"subsetMap": {"train": 3}}, ["subsetMap=", "dictionary"]),
        ({"baseClasses": True}, ["baseClasses=True", "a whole number or a list of names or none"]),
        ({"baseClasses": 20}, ["baseClasses: all 20 classes are base classes", "name fewer"]),
        ({"baseClasses": 21}, ["baseClasses: all 20 classes are base classes", "name fewer"]),
        ({"baseClasses": [f"A{n}" for n in range(1, 21)]}, ["all 20 classes are base classes"]),
        ({"baseClasses": ["A1", "a2"]}, ["baseClasses=a2: not in classList", "did you mean 'A2'"]),
        ({"replayImages": 5}, ["replayImages=5", "--set baseClasses=NAMES"]),
        (
            {"unlabelledClasses": "pseudo"},
            ["unlabelledClasses=pseudo", "modelName=base has no teacher", "use unlabelledClasses=mask"],
        ),
        ({"distilSelectedClasses": ["B1"]}, ["distilSelectedClasses=B1", "not in classList", "A20"]),
    ],
)
def test_bad_overrides(overrides, words):
    message = refused("c1.nano.full", overrides=overrides)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_a_root_inside_the_code_folder(tmp_path, monkeypatch):
    for root in (CODE_DIR, CODE_DIR / "runs", CODE_DIR / "x" / ".." / "y"):
        assert f"inside the code folder {CODE_DIR}" in refused("c1", root=root)
    (tmp_path / "link").symlink_to(CODE_DIR)
    assert "inside the code folder" in refused("c1", root=tmp_path / "link" / "runs")
    (tmp_path / "file").write_text("")
    assert "is a file" in refused("c1", root=tmp_path / "file")
    monkeypatch.setenv("MARS_ROOT", str(CODE_DIR / "runs"))
    assert "inside the code folder" in refused("c1")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("mcfg.maxEpochs = 3", ["maxEpochs", "did you mean 'maxEpoch'"]),
        ("mcfg.batchSize = '16'", ["batchSize='16'", "whole number"]),
        ("print(mcfg.classlist)", ["classlist", "did you mean 'classList'"]),
    ],
)
def test_a_mistake_in_a_recipe_names_file_and_line(recipe, line, words):
    folder = recipe(f"mcfg.seed = 1\n{line}")
    message = refused("r", recipe_dir=folder)
    assert all(word in message for word in [*words, f"({folder / 'r.py'}, line 7)"]), message


def test_what_a_recipe_raises_itself_is_its_own_sentence(recipe):
    folder = recipe("raise UserError('bring data')", head="from config.errors import UserError")
    assert refused("r", recipe_dir=folder) == "bring data"


@pytest.mark.parametrize(
    ("head", "body", "line", "words"),
    [
        ("import no_such_module", "", 2, "ModuleNotFoundError: No module named 'no_such_module'; install it"),
        ("", "mcfg.seed = 1 // 0", 6, "ZeroDivisionError: integer division or modulo by zero"),
        ("", "import json; json.JSONEncoder().default(1)", 6, "not JSON serializable; correct the recipe"),
        ("def deep(): deep()", "deep()", 2, "RecursionError: maximum recursion depth exceeded"),
        ("", "raise ValueError('two' + chr(10) + 'lines')", 6, "ValueError: two lines;"),
        ("", "raise ValueError('x' * 10**6)", 6, "ValueError: xxx"),
        ("", "mcfg.seed = (", 6, "SyntaxError: '(' was never closed"),
        ("", "import json; json.loads('{')", 6, "JSONDecodeError: Expecting property name"),
        ("import cfgops.missing", "", 2, "ModuleNotFoundError"),
    ],
)
def test_errors_of_the_recipe_are_told_with_file_and_line(recipe, head, body, line, words):
    folder = recipe(body, head)
    message = refused("r", recipe_dir=folder)
    assert message.startswith(f"{folder / 'r.py'}, line {line}: ") and words in message and "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("import sys; sys.exit('please give data')", "please give data"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("assert 'x' in tags, 'needs the tag x'", "needs the tag x"),
        ("assert 'x' in tags", "AssertionError"),
        ("raise NotImplementedError('no teacher of this phase')", "no teacher of this phase"),
        ("raise NotImplementedError", "NotImplementedError"),
    ],
)
def test_what_a_recipe_refuses_on_purpose_stays_its_own_sentence(recipe, body, told):
    folder = recipe(body)
    assert refused("r", recipe_dir=folder) == f"{folder / 'r.py'}, line 6: {told}"


def test_an_assertion_of_a_library_is_no_refusal_of_the_recipe(recipe, tmp_path, monkeypatch):
    (tmp_path / "asserting_library.py").write_text("def check(): assert False, 'inside'\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = recipe("asserting_library.check()", head="import asserting_library")
    assert refused("r", recipe_dir=folder).endswith("line 6: AssertionError: inside; correct the recipe")


def test_the_traceback_of_a_recipe_is_logged_and_memory_that_ran_out_is_raised(recipe, caplog):
    with caplog.at_level("DEBUG", "mars"):
        refused("r", recipe_dir=recipe("import json; json.loads('{')"))
    assert "raw_decode" in caplog.text  # deep in the library
    with pytest.raises(MemoryError):
        load_config("r", recipe_dir=recipe("raise MemoryError"))


def test_recipes_that_cannot_even_be_read(tmp_path):
    for name, content in {"latin": b"# caf\xe9\n", "zero": b"a = 1\0\n", "deep": b"(" * 10_000}.items():
        (tmp_path / f"{name}.py").write_bytes(content)
        assert str(tmp_path / f"{name}.py") in refused(name, recipe_dir=tmp_path)
    (tmp_path / "folder.py").mkdir()
    assert "folder.py: IsADirectoryError" in refused("folder", recipe_dir=tmp_path)
    (tmp_path / "odd.py").write_text("TAGS = 5\ndef mcfg(tags): ...\n")
    closing_text(tmp_path)  # raises nothing, for one recipe that is being edited must not hide the others


def test_files_that_are_no_recipes(tmp_path):
    (tmp_path / "empty.py").write_text("")
    assert "needs a function mcfg(tags)" in refused("empty", recipe_dir=tmp_path)
    (tmp_path / "forgot.py").write_text("def mcfg(tags):\n    pass\n")
    assert "must return the ModelConfig it made, not None" in refused("forgot", recipe_dir=tmp_path)
