"""Two faults at once, of two different things."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

from tests.soak import devices, links, process
from tests.soak.network import Network
from tests.soak.stage import NAMED_S, Stage
from tests.soak.trial import BACK_S, PINS_S, Broken, Play, Scene, Trial, Trouble
from voiced.sim.board import BoardError
from voiced.sim.stand import BUTTON_PIN, StandError

Act = Callable[[Stage], None]


def _talk(stage: Stage) -> None:
    stage.end(stage.begin(stage.rng.choice(("held", "tapped"))))


def _press(stage: Stage) -> None:
    """Whatever comes of it makes a sound, and changes the light."""
    stage.life.finger.press(BUTTON_PIN)
    time.sleep(0.1)
    stage.life.finger.release(BUTTON_PIN)


def _mute(stage: Stage) -> None:
    stage.command("mute")


def _unmute(stage: Stage) -> None:
    stage.command("unmute")
    stage.poll(lambda: not stage.status()["muted"], 2, "it stays muted")


def _mute_and_unmute(stage: Stage) -> None:
    _mute(stage)
    time.sleep(0.2)  # of two writes that wait for the disk, only the newer is done
    _unmute(stage)


def _misconfigure(stage: Stage) -> None:
    stage.reload(turn={"silence_ms": "soon"})


def _person(stage: Stage) -> None:
    """Who has given a valid key, or a valid configuration, says so."""
    stage.hang_up()
    stage.reload()


def _listen(stage: Stage) -> None:
    """The mouth speaks into the microphone that is back; `back` does the rest."""
    if stage.speaker_rig.plugged:
        stage.listen()


def _nothing(stage: Stage) -> None:
    pass


@dataclass(frozen=True)
class Half:
    """One of two. `of`: what it befalls; two of one kind would be one. `faults`: what it is called,
    one of these, once somebody has done what `show` does, and until what `hide` does. `mend`: what
    a person does when its cause is gone."""

    of: str
    trouble: Trouble
    faults: tuple[str, ...]
    show: Act = _nothing
    hide: Act = _nothing
    mend: Act = _nothing
    needs: str = ""

    def __str__(self) -> str:
        return self.faults[0] if self.faults else self.of

    def begin(self, stage: Stage, trial: Trial) -> ExitStack:
        """It lasts until what is returned is closed, and it is named."""
        with ExitStack() as stack:
            stack.enter_context(self.trouble(stage))
            self.tell(stage, trial)
            return stack.pop_all()

    def tell(self, stage: Stage, trial: Trial) -> None:
        """Bring it to light."""
        self.show(stage)
        if self.faults:
            trial.named(*self.faults)
        self.hide(stage)

    def end(self, stage: Stage, lasting: ExitStack) -> None:
        """It is over, and what it was called is not said any more."""
        lasting.close()
        self.mend(stage)
        stage.poll(lambda: not stage.faults() & set(self.faults), NAMED_S, f"{self} stays")


def _link(trouble: Trouble, fault: str, needs: str = "") -> Half:
    return Half("link", trouble, (fault,), _talk, mend=_person, needs=needs)


def _disk(trouble: Trouble) -> Half:
    return Half("disk", trouble, ("mute-not-kept",), _mute, _unmute, _mute_and_unmute, "disk")


HALVES = (
    # In this order they are begun: without a microphone nobody asks for a link.
    _link(links.refused, "no-route"),
    _link(links.showing("early"), "clock-wrong"),
    _link(links.showing("foreign"), "tls-untrusted"),
    _link(links.wrong_key, "key-refused"),
    _link(links.no_quota, "quota"),
    _link(links.in_network(Network.name_found), "no-dns", "network"),
    _link(links.in_network(Network.cable), "no-network", "network"),
    Half("server", links.stalling, ()),
    _disk(process.full),
    _disk(process.read_only),
    Half("socket", process.flooded, ()),
    Half(
        "configuration", lambda _: nullcontext(), ("config-invalid",), _misconfigure, mend=_person
    ),
    Half("lights", devices.dark_pins, ("lights-lost",), _press),
    Half("speaker", devices.speaker_unplugged, ("speaker-lost",), _press),
    Half("microphone", devices.microphone_unplugged, ("microphone-lost",), mend=_listen),
    Half("microphone", devices.held_card, ("microphone-busy",)),
)


def _choose(stage: Stage, *, of_link: bool) -> list[Half]:
    halves = [half for half in HALVES if not stage.lacks(half.needs)]
    one = stage.rng.choice([half for half in halves if (half.of in _LINK) is of_link])
    other = stage.rng.choice([half for half in halves if half.of not in (one.of, *_LINK)])
    return sorted((one, other), key=HALVES.index)


def _two(of_link: bool) -> Play:
    def play(stage: Stage, trial: Trial) -> None:
        pair = _choose(stage, of_link=of_link)
        try:
            _both(stage, trial, pair)
        except (Broken, StandError, BoardError, TimeoutError) as exc:
            raise Broken(f"{pair[0]} and {pair[1]}: {exc}") from exc

    return play


@contextmanager
def _sounds(stage: Stage) -> Iterator[None]:
    """Who presses in vain hears it: with no answer to play, so a speaker is found to be lost."""
    stage.scene.hears = False
    before = stage.settings["sounds"]
    stage.settings["sounds"] = {"enabled": True}
    stage.reload()
    try:
        yield
    finally:
        stage.settings["sounds"] = before
        stage.reload()


def _both(stage: Stage, trial: Trial, pair: list[Half]) -> None:
    """The second begins while the first lasts; whichever ends first, the other is still told of."""
    _person(stage)
    with ExitStack() as whatever_comes:
        if "speaker" in (half.of for half in pair):
            whatever_comes.enter_context(_sounds(stage))
        lasting = [(half, whatever_comes.enter_context(half.begin(stage, trial))) for half in pair]
        stage.rng.shuffle(lasting)
        for number, (half, its) in enumerate(lasting):
            if number:
                half.tell(stage, trial)
            half.end(stage, its)
    stage.hang_up()
    devices.back(stage, trial)


_LINK = ("link", "server")

SCENES = (
    Scene("link's fault and another", _two(of_link=True), PINS_S + BACK_S),
    Scene("two faults but of the link", _two(of_link=False), PINS_S + BACK_S),
)
