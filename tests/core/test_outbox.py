import json
import logging

from voiced.core.outbox import Outbox
from voiced.events import CloseLink, DropUnsent, Flush, Note, Send


def test_effects_come_out_in_order_and_once() -> None:
    outbox = Outbox()
    outbox.add(DropUnsent(), CloseLink())
    outbox.add(DropUnsent())
    assert outbox.take() == [DropUnsent(), CloseLink(), DropUnsent()]
    assert outbox.take() == []


def test_a_flush_overtakes_everything() -> None:
    outbox = Outbox()
    outbox.note("press", "press", logging.INFO)
    outbox.send(outbox.encode.clear())
    outbox.first(Flush(1, 0.0))
    assert [type(effect) for effect in outbox.take()] == [Flush, Note, Send]


def test_sending_returns_the_id_that_an_error_would_name() -> None:
    outbox = Outbox()
    event_id = outbox.send(outbox.encode.commit())
    (effect,) = outbox.take()
    assert isinstance(effect, Send)
    assert json.loads(effect.text)["event_id"] == event_id
    assert effect.audio_frames == 0


def test_a_note_has_the_time_of_the_event_being_handled() -> None:
    outbox = Outbox()
    outbox.now = 12.5
    outbox.note("turn", "= IDLE -> LISTENING", logging.INFO, turn="listening")
    assert outbox.take() == [
        Note("turn", 12.5, "= IDLE -> LISTENING", logging.INFO, {"turn": "listening"})
    ]
