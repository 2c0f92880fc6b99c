"""One process of one contestant: obeys the tasks that `seats.Seat` writes to it, a line of JSON each."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import tasks_async
import tasks_sync
from board import Board
from contest import Contestant, Place, find, said


def _answers() -> Any:
    """Our own standard output; what libraries print goes to the log instead."""
    mine = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return mine


def _say(out: Any, message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


def _failure(error: BaseException) -> dict[str, Any]:
    traceback.print_exc()
    return {"error": said(error)}


def serve(entry: Contestant, place: Place, board: Board, out: Any) -> None:
    try:
        world = tasks_sync.World(entry.open(place), board)
        _say(out, {})
    except BaseException as error:  # the parent names it
        _say(out, _failure(error))
        return
    for line in sys.stdin:
        task = json.loads(line)
        try:
            reply = getattr(tasks_sync, task.pop("task"))(world, **task)
        except Exception as error:
            reply = _failure(error)
        _say(out, reply)


async def serve_async(entry: Contestant, place: Place, board: Board, out: Any) -> None:
    loop = asyncio.get_running_loop()
    try:
        world = tasks_async.World(await entry.open(place), board)
        _say(out, {})
    except BaseException as error:
        _say(out, _failure(error))
        return
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        task = json.loads(line)
        try:
            reply = await getattr(tasks_async, task.pop("task"))(world, **task)
        except Exception as error:
            reply = _failure(error)
        _say(out, reply)


def main() -> None:
    label, place_, board_ = sys.argv[1:]
    out = _answers()
    entry, place, board = find(label), Place(*json.loads(place_)), Board(Path(board_))
    if entry.is_async:
        asyncio.run(serve_async(entry, place, board, out))
    else:
        serve(entry, place, board, out)
    os._exit(0)  # threads that still wait for a lock would keep us


if __name__ == "__main__":
    main()
