"""`python -m voiced.sim`: the built-in Realtime server as a program."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import ssl
import sys
from pathlib import Path

from voiced.sim.answer import AnswerError, load_answer
from voiced.sim.faults import Fault, FaultError, parse_fault
from voiced.sim.realtime_session import Call
from voiced.sim.server import SimOptions, SimServer


def _fault(text: str) -> Fault:
    try:
        return parse_fault(text)
    except FaultError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _call(text: str) -> Call:
    name, _, arguments = text.partition(":")
    return Call(name, arguments or "{}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m voiced.sim",
        description="A Realtime server on 127.0.0.1 that says back what it hears.",
    )
    add = parser.add_argument
    add("--port", type=int, default=0, help="0: any free one (default)")
    add("--answer", type=Path, metavar="WAV", help="say this instead of what was heard")
    add("--items", type=int, default=1, help="message items per answer (default 1)")
    add("--call", type=_call, metavar="NAME[:JSON]", help="call this function on each turn")
    add("--call-and-speak", action="store_true", help="with --call: speak behind the call")
    add("--think-ms", type=float, default=300, help="wait before an answer (default 300)")
    add("--delta-ms", type=int, default=200, help="audio per delta (default 200)")
    add("--pace", type=float, default=20, help="times real time; 0: all at once (default 20)")
    add("--late-deltas", type=int, default=0, help="deltas that still come after a cancel")
    add("--vad-dbfs", type=float, default=-40, help="RMS level of speech (default -40)")
    add("--vad-margin-db", type=float, metavar="DB", help="speech also exceeds the noise by this")
    add(
        "--semantic-ms",
        type=float,
        default=800,
        help="silence after which semantic_vad understands that you have finished (default 800; "
        "inf: never, it waits as long as its eagerness allows)",
    )
    add(
        "--transcription",
        choices=("before", "with", "after", "failed", "never"),
        default="with",
        help="when the user's words come, if asked for (default with)",
    )
    add("--refuse-param", action="append", default=[], metavar="PATH", help="unknown setting")
    add("--key", action="append", metavar="KEY", help="accepted key; none given: all are")
    add("--no-quota", action="store_true", help="refuse for lack of credit")
    add("--http-status", type=int, default=0, help="refuse the upgrade with this status")
    add("--max-session-s", type=float, default=3600, help="session limit (default 3600)")
    add("--dial-delay-s", type=float, default=0, help="wait before the upgrade")
    add("--reset-dials", type=int, default=0, metavar="N", help="break the first N dials off")
    add(
        "--fault",
        type=_fault,
        action="append",
        default=[],
        metavar="NAME[:ARG]@WHEN",
        help="close:CODE, reset, half-open, slow:BYTES_PER_S, garbage, mute, stall:SECONDS or "
        "refuse:SECONDS, once, so many seconds after a session began, or with the first event of "
        "a type: @input_audio_buffer.commit, when it came (it is not answered any more) or was "
        "sent; may repeat",
    )
    add("--frames", type=Path, metavar="FILE", help="log every frame to this file")
    add("--tls-cert", type=Path, metavar="PEM", help="serve wss://, with --tls-key")
    add("--tls-key", type=Path, metavar="PEM")
    return parser


def _tls(parser: argparse.ArgumentParser, args: argparse.Namespace) -> ssl.SSLContext | None:
    if (args.tls_cert is None) != (args.tls_key is None):
        parser.error("--tls-cert and --tls-key go together")
    if args.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(args.tls_cert, args.tls_key)
    return context


def _options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> SimOptions:
    try:
        answer = load_answer(args.answer) if args.answer else None
    except AnswerError as error:
        parser.error(str(error))
    if args.items < 1 or args.delta_ms < 1 or args.pace < 0:
        parser.error("--items and --delta-ms are at least 1, --pace at least 0")
    if not args.semantic_ms >= 0:
        parser.error("--semantic-ms is at least 0")
    return SimOptions(
        port=args.port,
        answer=answer,
        items=args.items,
        call=args.call._replace(speak_too=args.call_and_speak) if args.call else None,
        think_ms=args.think_ms,
        delta_ms=args.delta_ms,
        pace=args.pace,
        late_deltas=args.late_deltas,
        vad_dbfs=args.vad_dbfs,
        vad_margin_db=args.vad_margin_db,
        semantic_ms=args.semantic_ms,
        transcription=args.transcription,
        refuse_params=tuple(args.refuse_param),
        keys=frozenset(args.key) if args.key else None,
        has_quota=not args.no_quota,
        http_status=args.http_status,
        max_session_s=args.max_session_s,
        dial_delay_s=args.dial_delay_s,
        reset_dials=args.reset_dials,
        faults=tuple(args.fault),
        frames=args.frames,
        ssl=_tls(parser, args),
    )


async def _run(options: SimOptions) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with SimServer(options) as server:
        print(json.dumps({"url": server.url, "version": 1}), flush=True)
        await stop.wait()
    print(
        json.dumps(
            {
                "violations": server.violations,
                "violation_count": server.verdict.violation_count,
                "races": server.races,
                "sessions": server.session_count,
                "dials": server.dials,
            }
        ),
        flush=True,
    )


def main() -> int:
    parser = _parser()
    options = _options(parser, parser.parse_args())
    try:
        asyncio.run(_run(options))
    except OSError as error:
        print(f"cannot serve: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
