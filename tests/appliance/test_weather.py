"""What the day of bad weather promises about itself, without a machine."""

from __future__ import annotations

import runpy
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.appliance import sabotage, weather
from tests.appliance.day import Broken
from tests.appliance.sound import Recording
from tests.appliance.stage import Stage
from tests.appliance.weather import SCENES, TRIES, Scene, Turn, Weather
from tests.soak import judge
from tests.soak.judge import Frame
from tests.soak.table import FaultRow
from voiced.core.link import Link
from voiced.sim.stand import toml


class FakeStage:
    """A device that is at rest, with a machine that takes every command."""

    def __init__(self) -> None:
        self.machine = SimpleNamespace(run=lambda *_: "10.0.2.2 dev nic src 10.0.2.15")
        self.watch = SimpleNamespace(lines=[])
        self.process = "1"

    def now(self) -> float:
        return 1.0

    def show(self, _: str) -> str:
        return self.process

    def release(self) -> None:
        pass

    def command(self, _: str) -> None:
        pass

    def talk(self) -> list[Frame]:
        return [Frame(1.5, "server", {"type": "response.created"}, 1)]

    def status(self) -> dict[str, object]:
        return {"faults": [], "turn": "idle", "link": "down"}

    def wait(self, done: Callable[[], object], *_: object) -> object:
        return done()


def play(scene: Callable[[FakeStage], float]) -> FaultRow:
    """The row of one scene with a goal of a second."""
    stage, rows = FakeStage(), dict[str, FaultRow]()
    bad = Weather(cast(Stage, stage), 1, 0.0, rows)
    bad.play(Scene("it", lambda _: scene(stage), 1.0), lambda _: None)
    return rows["it"]


def test_a_scene_in_service_again_in_time_is_good() -> None:
    row = play(lambda _: 0.5)
    assert row.ok
    assert (row.injected, row.recovered, row.worst_s) == (1, 1, 0.5)


def test_a_late_one_and_a_broken_promise_are_not() -> None:
    def broken(_: FakeStage) -> float:
        raise Broken("it is deaf")

    assert not play(lambda _: 1.5).ok
    row = play(broken)
    assert not row.ok
    assert "it is deaf" in row.complaints[0]


def test_a_process_that_ended_is_a_complaint() -> None:
    def end(stage: FakeStage) -> float:
        stage.process = "2"
        return 0.0

    assert not play(end).ok


def test_a_busy_host_is_not_counted_and_never_good() -> None:
    played = []

    def starve(stage: FakeStage) -> float:
        played.append(1)
        stage.watch.lines.append({"event": "fault", "t": 2.0, "fault": "microphone-slow"})
        raise Broken("no answer")

    row = play(starve)
    assert len(played) == TRIES
    assert not row.ok


@pytest.mark.parametrize("starved_plays", [0, 1, TRIES])
def test_words_that_the_host_has_lost_are_said_again(
    starved_plays: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plays = []

    def compare(*_: object) -> judge.Words:
        plays.append(1)
        return judge.Words(500.0 if len(plays) <= starved_plays else 0.0, 0.0)

    monkeypatch.setattr(judge, "compare", compare)
    monkeypatch.setattr(judge, "answered_turn", lambda *_: None)
    stage, rows = FakeStage(), dict[str, FaultRow]()
    bad = Weather(cast(Stage, stage), 1, 0.0, rows)
    monkeypatch.setattr(bad, "_missed", lambda: 3)
    monkeypatch.setattr(bad, "journal", lambda: "")
    turn = Turn(cast(Recording, None), begin=1.0, end=2.0, pressed=0.9, missed=2)

    def talk(_: Weather) -> float:
        bad._judge(turn)
        return 0.5

    bad.play(Scene("it", talk, 1.0), lambda _: None)
    assert len(plays) == min(starved_plays + 1, TRIES)
    is_judged = starved_plays < TRIES
    assert rows["it"].ok is is_judged
    assert [each.ok for each in bad.invariants()] == [is_judged, True]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc/voiced").mkdir(parents=True)
    settings = {"microphone": {"device": "hw:CARD=Mic"}}
    (tmp_path / "etc/voiced/voiced.toml").write_text(toml(settings))
    return tmp_path


def test_a_machine_without_sabotage_has_none(root: Path) -> None:
    weather.furnish(root, "")
    settings = tomllib.loads((root / "etc/voiced/voiced.toml").read_text())
    assert settings["microphone"]["device"] == "hw:CARD=Mic"
    assert not list(root.rglob("*.conf"))


def test_a_sabotage_is_laid_where_the_unit_finds_it(root: Path) -> None:
    weather.furnish(root, "no-replay")
    (dropin,) = root.rglob("*.conf")
    told = dropin.read_text().split("Environment=")[1].split()
    environment = dict(pair.split("=", 1) for pair in told)
    assert environment[sabotage.VARIABLE] == "no-replay"
    assert (root / environment["PYTHONPATH"][1:] / "sitecustomize.py").is_file()


@pytest.mark.parametrize("name", sabotage.SABOTAGES)
def test_each_sabotage_names_a_scene(name: str) -> None:
    assert sabotage.SABOTAGES[name][1] in {scene.name for scene in SCENES}


def test_names_of_scenes_are_their_own() -> None:
    assert len({scene.name for scene in SCENES}) == len(SCENES)


def test_a_sabotage_happens_where_its_variable_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Link, "lost", Link.lost)  # put back afterwards
    before = Link.lost
    runpy.run_path(str(Path(sabotage.__file__)))
    assert Link.lost is before
    monkeypatch.setenv(sabotage.VARIABLE, "never-reconnects")
    runpy.run_path(str(Path(sabotage.__file__)))
    assert Link.lost is not before
