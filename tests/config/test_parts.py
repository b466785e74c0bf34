"""Parts of a recipe as text: written from objects, read back without executing anything, built from known classes."""

import sys
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.errors import UserError
from config.parts import PartText
from dl.transforms import Affine, MixUp, Transform
from train.loss import LossPart

HERE = __name__


@dataclass(frozen=True)
class Wave:
    height: float = 1.0
    names: tuple[str, ...] = ()
    options: dict = field(default_factory=dict)


def test_an_object_becomes_text_with_all_its_values():
    """Defaults, too: they may change between two starts of a run."""
    assert PartText.of(MixUp(probability=0.3)) == "MixUp(probability=0.3, alpha=32.0)"
    assert PartText.of(MixUp) == PartText.of("MixUp") == PartText.of(" MixUp() ") == "MixUp()"
    affine = "Affine(rotate=10.0, shear=2.0, perspective=0.0, scale=0.0, translate=0.0)"
    assert PartText.of(Affine(10.0, shear=2.0)) == affine
    assert PartText.of(Wave(2.0)) == f"{HERE}:Wave(height=2.0, names=(), options={{}})"
    assert PartText.of("dl.transforms:MixUp(alpha=2)") == "MixUp(alpha=2)"  # one spelling, so that configs compare


@given(
    height=st.floats(allow_nan=False, allow_infinity=False),
    names=st.lists(st.text(max_size=5)).map(tuple),
    options=st.dictionaries(st.text(max_size=3), st.integers() | st.booleans() | st.none(), max_size=3),
)
def test_text_and_back(height, names, options):
    wave = Wave(height, names, options)
    text = PartText.of(wave)
    assert PartText.of(text) == text
    assert PartText.of(text).build("transforms", "dl.transforms") == wave


def test_mars_own_classes_are_found_by_name():
    assert PartText.of("MixUp(probability=0.3)").build("transforms", "dl.transforms") == MixUp(0.3)


def test_a_class_of_a_recipe_is_found_by_its_module(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Ripple:\n    height: float = 1.0\n", encoding="utf-8"
    )
    cfgops = __import__("cfgops")
    monkeypatch.setattr(cfgops, "__path__", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "cfgops.mine", raising=False)
    assert PartText.of("cfgops.mine:Ripple(height=2.0)").build("transforms", "dl.transforms").height == 2.0
    with pytest.raises(UserError, match=r"no class Riple in cfgops.mine \(did you mean 'Ripple'\?\)"):
        PartText.of("cfgops.mine:Riple()").build("transforms", "dl.transforms")
    monkeypatch.delitem(sys.modules, "cfgops.mine", raising=False)
    (tmp_path / "mine.py").unlink()
    with pytest.raises(UserError, match=r"transforms=cfgops.gone:Ripple\(\): cfgops.gone cannot be imported"):
        PartText.of("cfgops.gone:Ripple()").build("transforms", "dl.transforms")


def test_unknown_names_are_refused_with_the_nearest_known():
    with pytest.raises(UserError, match=r"no class MixUpp in dl.transforms \(did you mean 'MixUp'\?\)"):
        PartText.of("MixUpp()").build("transforms", "dl.transforms")
    with pytest.raises(UserError, match=r"transforms=MixUp\(chance=1\): .*unexpected keyword argument 'chance'"):
        PartText.of("MixUp(chance=1)").build("transforms", "dl.transforms")
    with pytest.raises(UserError, match="perspective must be between"):
        PartText.of("Affine(perspective=3)").build("transforms", "dl.transforms")


@pytest.mark.parametrize(
    "text", ["subprocess:Popen(args='id')", "os:stat_result()", "builtins:exec()", "dl.dataset:X()"]
)
def test_a_text_cannot_name_any_class(text):
    """A config may come from a file of somebody else."""
    with pytest.raises(UserError, match="was not loaded by the recipe"):
        PartText.of(text).build("transforms", "dl.transforms")


@pytest.mark.parametrize(
    "text",
    ["", "MixUp(", "MixUp(1)", "MixUp(a=b)", "MixUp(a=open('x'))", "MixUp(**{})", "a.b()", "MixUp()()", "lambda: 0",
     "MixUp(a=1, a=2)", "MixUp(a=" + "(" * 1000 + ")" * 1000 + ")", "os.system('id')", "A(x=1)\nB()"],
)  # fmt: skip
def test_other_texts_are_refused(text):
    with pytest.raises(UserError, match="expected the name of a class and plain values"):
        PartText.of(text)


def test_values_that_cannot_be_saved_are_refused():
    with pytest.raises(UserError, match=r"Wave: options=.* cannot be saved in the config"):
        PartText.of(Wave(options={"f": print}))
    with pytest.raises(UserError, match=r"height=nan cannot be saved"):
        PartText.of(Wave(height=float("nan")))
    with pytest.raises(UserError, match="is no dataclass"):
        PartText.of(print)


@pytest.mark.parametrize(
    ("text", "parts"),
    [("", ()), ("none", ()), ("MixUp", ("MixUp()",)), ("A(x=1,y=2),B()", ("A(x=1, y=2)", "B()")),
     (" A() , B ", ("A()", "B()")), ("A(x=(1,2),y=[3,4]),B", ("A(x=(1, 2), y=[3, 4])", "B()")),
     ("A(x='a,(b'),B", ("A(x='a,(b')", "B()")), ('A(x="it\'s,"),B', ('A(x="it\'s,")', "B()"))],
)  # fmt: skip
def test_a_list_on_the_command_line(text, parts):
    assert PartText.list_of(text) == parts


def test_a_class_in_a_function_is_refused():
    @dataclass(frozen=True)
    class Local:
        height: float = 1.0

    with pytest.raises(UserError, match="Local is defined inside a function; define it at the top level"):
        PartText.of(Local())


@pytest.mark.parametrize("text", ["Sample()", "Any()", "Transform()", "_Hidden()", "UserError()"])
def test_a_name_that_a_module_only_imports_is_no_class_of_it(text):
    with pytest.raises(UserError, match=r"no class|Protocols cannot"):
        PartText.of(text).build("transforms", "dl.transforms", kind=Transform)


def test_a_class_of_another_kind_is_not_even_built(tmp_path, monkeypatch):
    marker = tmp_path / "built"
    (tmp_path / "cleaner.py").write_text(
        f"class Cleaner:\n    def __init__(self, path):\n        open({str(marker)!r}, 'w').close()\n", encoding="utf-8"
    )
    monkeypatch.setattr(__import__("cfgops"), "__path__", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "cfgops.cleaner", raising=False)
    with pytest.raises(UserError, match="a LossPart needs name, weight, __call__"):
        PartText.of("cfgops.cleaner:Cleaner(path='/home')").build("lossParts", "train.loss", kind=LossPart)
    assert not marker.exists()
