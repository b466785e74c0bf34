"""`make attacks` with a few commands: does it notice an attack that succeeds?"""

import pytest

from benchmarks import attacks
from benchmarks.attacks import Attack, AttackOutcome, run, table

REFUSED = Attack("commands", "an unknown user", lambda folder: ["c1", "--data", "~nosuchuser/x"], (2,))
MESSAGE = "mars: a.pt: is damaged\n"


def outcome(status: int = 2, text: str = MESSAGE, cpu_seconds: float = 1.0, peak_mib: float = 600.0) -> AttackOutcome:
    return AttackOutcome(status, text, cpu_seconds, peak_mib)


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        (outcome(), ""),
        (outcome(text="Traceback (most recent call last):\nKeyError: 1\n"), "KeyError: 1"),
        (outcome(text=f"{MESSAGE}Exception ignored in: <_io>\n"), "Exception ignored"),
        (outcome(status=1), "status 1: mars: a.pt"),
        (outcome(status=-9), "status -9"),
        (outcome(text=""), "no message"),
        (outcome(text="mars: a\x1b[2Kb\n"), r"control character '\x1b'"),
        (outcome(text="10 %\r100 %\n\tdone: 飞机\n"), ""),
        (outcome(peak_mib=attacks.PEAK_MIB + 1), "MiB"),
        (outcome(cpu_seconds=attacks.CPU_SECONDS + 1), " s"),
    ],
)
def test_what_does_not_hold_is_named(found, complaint):
    text = found.complaint(REFUSED)
    assert complaint in text and bool(text) == bool(complaint)


def test_a_real_command_is_run_with_its_status_message_and_use(tmp_path):
    found = run(REFUSED, tmp_path / "attack")
    assert found.status == 2 and "there is no user 'nosuchuser'" in found.text
    assert 0 < found.cpu_seconds < attacks.CPU_SECONDS and 0 < found.peak_mib < attacks.PEAK_MIB
    assert found.complaint(REFUSED) == ""


def test_a_command_that_never_ends_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(attacks, "WALL_SECONDS", 0.5)
    (tmp_path / "mars.py").write_text("while True: pass\n")
    monkeypatch.setattr(attacks, "ROOT", tmp_path)
    found = run(REFUSED, tmp_path / "attack")
    assert "status -9" in found.complaint(REFUSED)


def test_the_table_counts_what_was_tried_held_and_failed():
    image = REFUSED._replace(group="images")
    rows = [(REFUSED, outcome()), (REFUSED, outcome(status=1)), (image, outcome(peak_mib=700.4))]
    lines = [line.split() for line in table(rows).splitlines()]
    assert lines[1:] == [
        ["commands", "2", "1", "1", "600", "1"],
        ["images", "1", "1", "0", "700", "1"],
        ["all", "3", "2", "1", "700", "1"],
    ]


def test_every_kind_of_input_is_attacked():
    groups = [attack.group for attack in attacks.attacks()]
    assert set(groups) == {
        "weights", "checkpoints", "bundles", "data sets", "images", "large valid images", "commands",
        "consoles of a training",
    }  # fmt: skip
    assert len(groups) > 300
