"""A worker's process: `python -m genpipe.workers.process`, spoken to over its standard input and output.

Messages are JSON objects, one per line. In: {"job", "device"}, then {"draw"} with a `Work`, and {"drain"}. Out: {"opened",
"device", "cards"} or {"refused"}; then {"begun"}, {"done", "result"}, {"returned"} and {"stop"}, which names the error that
ends the run. When its input ends, so does the process: it never outlives its coordinator.
"""

import gc
import json
import os
import queue
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from genpipe.workers.messages import Job, Work
from genpipe.workers.turns import Turns

# Seconds after which a thread that computes in Python lets others go on, if they wait: what launches a GPU's kernels comes
# back from each with the wish to go on soon. A tenth of Python's own; less, and threads would do little but take turns.
SWITCH = 5e-4


def main(renderer: Callable[[Job, str | None], Any] | None = None) -> None:
    """Serve until the input ends. `renderer` makes what draws, by default a `Renderer`."""
    # What libraries print must not get between the messages.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # Ctrl-C reaches the whole group; the coordinator says when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.showwarning = _show_warning
    warnings.simplefilter("ignore", FutureWarning)  # what libraries will drop one day is for those who call them
    lock = threading.Lock()

    def send(**message: Any) -> None:
        with lock:
            channel.write(json.dumps(message) + "\n")
            channel.flush()

    sys.setswitchinterval(SWITCH)
    todo: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    drawing: list[Turns] = []
    threading.Thread(target=_listen, args=(drawing, todo, send), daemon=True).start()
    opening = todo.get()
    job = Job.from_dict(opening["job"])
    try:
        if renderer is None:
            from genpipe.workers.renderer import Renderer as renderer
        made = renderer(job, opening["device"])
        import torch

        model = made.model()
        drawing.append(Turns(made))
        send(opened=asdict(model), device=str(made.pipeline.device), cards=torch.cuda.device_count())
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        send(refused=_line(error), usage=isinstance(error, ValueError))
        return
    # What is there by now stays: looking through all of torch for garbage took a fifth of a millisecond per image.
    gc.collect()
    gc.freeze()
    for _ in range(model.depth - 1):
        threading.Thread(target=_serve, args=(drawing[0], todo, send), daemon=True).start()
    _serve(drawing[0], todo, send)


def _listen(drawing: list[Turns], todo: "queue.SimpleQueue[dict[str, Any]]", send: Callable[..., None]) -> None:
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if "drain" not in message:
            todo.put(message)
            continue
        for turns in drawing:
            turns.drain()
        while True:
            try:
                send(returned=todo.get_nowait()["draw"]["key"])
            except queue.Empty:
                break
    os._exit(0)


def _serve(turns: Turns, todo: "queue.SimpleQueue[dict[str, Any]]", send: Callable[..., None]) -> None:
    def take() -> Work:
        work = Work.from_dict(todo.get()["draw"])
        send(begun=work.key)
        return work

    while True:
        try:
            work, result = turns.draw(take)
            if result is None:
                send(returned=work.key)
            else:
                send(done=work.key, result=vars(result))
        except BrokenPipeError:
            os._exit(1)
        except OSError as error:
            send(stop=_line(error), errno=error.errno)
        except BaseException:  # noqa: BLE001 - what state the device is in nobody knows: a new process takes over
            traceback.print_exc()
            os._exit(1)


def _line(error: Exception) -> str:
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    return " ".join(text.split()) or type(error).__name__


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print("genpipe: warning:", " ".join(str(message).split()), file=sys.stderr)


if __name__ == "__main__":
    main()
