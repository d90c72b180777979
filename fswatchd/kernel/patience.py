"""Ask the kernel what it may have to ask somebody else, who may never answer."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

Answer = TypeVar("Answer")


class Patience:
    """Each question in a thread of its own; one that hangs is not asked again meanwhile."""

    def __init__(self) -> None:
        self._hanging: dict[str, threading.Thread] = {}

    def ask(self, name: str, question: Callable[[], Answer], patience_s: float) -> Answer:
        """The answer to the question of this name, or what it raises.

        Raises TimeoutError when there is none in time, and at once while an earlier one hangs.
        """
        earlier = self._hanging.get(name)
        if earlier is not None and earlier.is_alive():
            raise TimeoutError(110, "it has not answered for some time", name)
        future: Future[Answer] = Future()

        def work() -> None:
            try:
                future.set_result(question())
            except Exception as error:  # noqa: BLE001  it is for who asks
                future.set_exception(error)

        # A daemon thread: at the end of the program nobody waits for it either.
        thread = threading.Thread(target=work, daemon=True, name=f"asking {name}")
        thread.start()
        done, _ = wait([future], patience_s)
        if not done:
            self._hanging[name] = thread
            raise TimeoutError(110, f"no answer within {patience_s:g} s", name)
        self._hanging.pop(name, None)
        return future.result()
