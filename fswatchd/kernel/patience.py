"""Ask the kernel what it may have to ask somebody else, who may never answer."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

Answer = TypeVar("Answer")


class Patience:
    """Each question in a thread of its own; one that hangs is not asked again meanwhile.

    Not in a thread of a pool: a few that hang would leave none for anybody else. Daemon threads: at
    the end of the program nobody waits for them either.
    """

    def __init__(self) -> None:
        self._hanging: dict[str, threading.Thread] = {}

    def ask(self, name: str, question: Callable[[], Answer], patience_s: float) -> Answer:
        """The answer to the question of this name, or what it raises.

        Raises TimeoutError when there is none in time, and at once while an earlier one hangs.
        """
        future, thread = self._begin(name, question)
        done, _ = wait([future], patience_s)
        if not done:
            self._hanging[name] = thread
            raise _late(name, patience_s)
        return future.result()

    async def answer(self, name: str, question: Callable[[], Answer], patience_s: float) -> Answer:
        """The same beside an event loop, which nothing of it holds up."""
        future, thread = self._begin(name, question)
        try:
            async with asyncio.timeout(patience_s):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            if future.done():
                raise  # its own
            raise _late(name, patience_s) from None
        finally:
            if not future.done():
                self._hanging[name] = thread

    def hangs(self, name: str) -> bool:
        """Whether the last question of this name has no answer yet: it would not be asked."""
        earlier = self._hanging.get(name)
        return earlier is not None and earlier.is_alive()

    def _begin(
        self, name: str, question: Callable[[], Answer]
    ) -> tuple[Future[Answer], threading.Thread]:
        if self.hangs(name):
            raise TimeoutError(110, "it has not answered for some time", name)
        self._hanging.pop(name, None)
        future: Future[Answer] = Future()
        # Nobody can take back what is being asked: who gives up does not wait for the answer.
        future.set_running_or_notify_cancel()

        def work() -> None:
            try:
                future.set_result(question())
            except Exception as error:  # noqa: BLE001  it is for who asks
                future.set_exception(error)

        thread = threading.Thread(target=work, daemon=True, name=f"asking {name}")
        thread.start()
        return future, thread


def _late(name: str, patience_s: float) -> TimeoutError:
    return TimeoutError(110, f"no answer within {patience_s:g} s", name)
