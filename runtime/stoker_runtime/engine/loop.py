"""The engine's thread: take commands, step while there is work, sleep on the socket while there is none."""

from __future__ import annotations

import time

from stoker_runtime.engine.connection import Connection
from stoker_runtime.engine.engine import Engine
from stoker_runtime.messages import AbortRequest, AddRequest, Command, Shutdown

HEARTBEAT_S = 1.0
_GOODBYE_S = 5.0


def run_loop(engine: Engine, connection: Connection, heartbeat_s: float) -> None:
    """Serve until the server says Shutdown or closes its end.

    One StepOutputs is sent per step, and behind it the thread rests for `Engine.handover_s`; without work one
    is sent every `heartbeat_s`. While the server does not read what it was sent, no step is taken, so outputs
    wait in the requests rather than in memory.

    Raises:
        OSError: the last outputs could not be handed over at shutdown.
        Exception: whatever a step raises; the engine must not be used again.
    """
    last_sent_s = time.monotonic()
    while connection.is_open:
        if connection.is_congested:
            sleep_s = heartbeat_s  # neither steps nor heartbeats until the server has read something
        elif engine.has_work:
            sleep_s = 0.0
        else:
            sleep_s = max(0.0, last_sent_s + heartbeat_s - time.monotonic())
        for command in connection.exchange(sleep_s):
            if isinstance(command, Shutdown):
                _say_goodbye(engine, connection)
                return
            _obey(engine, command)
        is_beat_due = time.monotonic() >= last_sent_s + heartbeat_s
        if (engine.has_work or is_beat_due) and not connection.is_congested:
            connection.send(engine.step())
            last_sent_s = time.monotonic()
            if engine.handover_s:
                time.sleep(engine.handover_s)


def _obey(engine: Engine, command: Command) -> None:
    if isinstance(command, AddRequest):
        engine.add(command)
    elif isinstance(command, AbortRequest):
        engine.abort(command.request_id)


def _say_goodbye(engine: Engine, connection: Connection) -> None:
    engine.abort_all()
    connection.send(engine.step())
    connection.flush(_GOODBYE_S)
