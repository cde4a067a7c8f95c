"""Images are written beside the networks: by threads of this process, or by processes of their own."""

import queue
import threading
from concurrent.futures import Future
from threading import BoundedSemaphore

from PIL import Image

from genpipe.images import Sign
from genpipe.processors import processors
from genpipe.workers.image_files import Written, write_image
from genpipe.workers.storage import open_storage
from genpipe.workers.writer_process import Gone, WriterProcess

# A disk is slow to say that it holds one file, and about as slow for many at a time.
THREADS = 16
# Processes that write what one worker draws, at most; and processors that are left to the worker and the coordinator.
PROCESSES, LEFT = 8, 4


def writer_processes(processors: int) -> int:
    """How many processes write beside a GPU: none where there are few processors, which threads use as well."""
    return max(0, min(PROCESSES, processors - LEFT))  # much of the time they wait for the disk


class Writer:
    """Writes images.

    Threads of one process take turns at its interpreter, hundreds of times per image. What feeds a GPU with thousands of
    small images has no time for that: then processes write.

    Args:
        out: a folder, or an fsspec URL.
        sign: signs the files.
        signs_with: what `sign` was made of, for processes that make their own.
        processes: that write; 0 has threads write.
    """

    def __init__(
        self, out: str, *, sign: Sign | None = None, signs_with: str | None = None, processes: int = 0
    ) -> None:
        self._storage, self._sign = open_storage(out), sign
        self._turn = BoundedSemaphore(
            processors()
        )  # more that encode at a time would only take turns at the interpreter
        self._waiting: queue.SimpleQueue[tuple[Future[Written], str, str, Image.Image]] = queue.SimpleQueue()
        for _ in range(processes or THREADS):
            process = WriterProcess(out, signs_with) if processes else None
            threading.Thread(target=self._serve, args=(process,), daemon=True).start()

    def submit(self, identifier: str, path: str, image: Image.Image) -> Future[Written]:
        """Begin to write an image, as `write_image` does; the future raises what that does."""
        future: Future[Written] = Future()
        self._waiting.put((future, identifier, path, image))
        return future

    def _serve(self, process: WriterProcess | None) -> None:
        while True:
            future, identifier, path, image = self._waiting.get()
            try:
                if process is not None:
                    try:
                        future.set_result(process.write(identifier, path, image))
                        continue
                    except Gone:  # this thread writes in its place
                        process.close()
                        process = None
                future.set_result(write_image(self._storage, identifier, path, image, self._sign, turn=self._turn))
            except BaseException as error:  # noqa: BLE001 - who waits for it is told
                future.set_exception(error)
