"""Keeping child processes running until this one is told to stop.

Each child is in a session of its own, so Ctrl-C reaches this process alone, and it stops them in order. Should this
process be killed instead, the children notice: they hold the reading end of a pipe whose other end only this process
has, and stop when it closes (`follow_parent`).

A child that ends by itself is started again, at once the first time, then ever more slowly.
"""

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType, TracebackType
from typing import Protocol, Self

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_WITHIN_S = 10.0
ORPHAN_STOP_WITHIN_S = 4.0
STEADY_AFTER_S = 10.0
MAX_PAUSE_S = 5.0
TICK_S = 0.2


class Stop(BaseException):
    """A signal told this process to stop."""


class Restartable(Protocol):
    """What a keeper needs of a child. The engines of `server.embedded` have it too."""

    name: str

    @property
    def running(self) -> bool: ...
    def spawn(self) -> None: ...


class Program:
    """A verb of `secureblogs` as a child process."""

    def __init__(self, name: str, environ: Mapping[str, str], lifeline: int) -> None:
        self.name = name
        self.environ = dict(environ)
        self.lifeline = lifeline
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def spawn(self) -> None:
        self.starts += 1
        # -P: the folder that this happens to be run in must not put its own modules in front of ours.
        command = [sys.executable, "-P", "-m", "server.cli", "--lifeline", str(self.lifeline), self.name]
        self.process = subprocess.Popen(  # noqa: S603 - our own command
            command, env=self.environ, stdin=subprocess.DEVNULL, pass_fds=(self.lifeline,), start_new_session=True
        )

    def tell(self, number: signal.Signals) -> None:
        if self.process is not None and self.running:
            self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, with all that it may have started."""
        if self.process is not None and self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Keeper:
    """Starts one child, and starts it again whenever it has ended."""

    def __init__(self, child: Restartable) -> None:
        self.child = child
        self.failures = 0
        self.started_at = 0.0
        self.start_at: float | None = None

    def tend(self, now: float) -> None:
        """To be called often, and whenever some child has ended."""
        if self.child.running:
            if now - self.started_at > STEADY_AFTER_S:
                self.failures = 0
            return
        if self.start_at is None:
            self.failures += 1
            self.start_at = now + pause(self.failures)
            log.warning("%s ended and is started again", self.child.name, extra={"in_s": pause(self.failures)})
        if now >= self.start_at:
            self.spawn(now)

    def spawn(self, now: float) -> None:
        self.start_at = None
        self.started_at = now
        self.child.spawn()


def pause(failures: int) -> float:
    """Seconds to wait before the next start, after so many failures in a row."""
    return 0.0 if failures <= 1 else min(MAX_PAUSE_S, 0.25 * 2.0 ** min(failures - 1, 10))


class Signals:
    """Stop signals and ended children, as something to wait for.

    A stop signal raises Stop wherever the program is, once, unless `hold` was called: then it is only counted.
    """

    def __init__(self) -> None:
        self.stops = 0
        self.held = False

    def __enter__(self) -> Self:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self.writer, False)
        self.wakeup = signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        caught = {*STOP_SIGNALS, signal.SIGCHLD}
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            # nohup's doing. That a shell has SIGINT ignored in what it starts with `&` is another thing: whoever sends
            # one all the same means it.
            caught.remove(signal.SIGHUP)
        self.before = {number: signal.signal(number, self.receive) for number in caught}
        return self

    def receive(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGCHLD:
            return
        self.stops += 1
        if not self.held:
            self.held = True
            raise Stop

    def hold(self) -> None:
        self.held = True

    def wait(self, within_s: float = TICK_S) -> None:
        """Return when a signal came, or else in good time."""
        select.select([self.reader], [], [], within_s)
        with contextlib.suppress(BlockingIOError):
            while os.read(self.reader, 512):
                pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self.wakeup)
        os.close(self.reader)
        os.close(self.writer)


def finish(program: Program, signals: Signals) -> int:
    """Run a program to its end and give its exit status. Raises Stop, and stops the program, when a signal came."""
    program.spawn()
    try:
        while program.running:
            if signals.stops:
                raise Stop
            signals.wait()
    finally:
        stop_all([program], signals)
    return program.process.returncode if program.process else 1


def keep(
    programs: Sequence[Program], engines: Sequence[Restartable], signals: Signals, each_round: Callable[[], bool]
) -> None:
    """Keep all of them running until a stop signal, then stop the programs; the engines are the caller's to stop.

    `each_round` is called a few times a second; when it returns True the programs are stopped and started anew.
    """
    keepers = [Keeper(child) for child in (*engines, *programs)]
    try:
        for keeper in keepers:
            if not keeper.child.running:
                keeper.spawn(time.monotonic())
        while not signals.stops:
            for keeper in keepers:
                keeper.tend(time.monotonic())
            signals.wait()
            if each_round():
                stop_all(programs, signals)
                for keeper in keepers[len(engines) :]:
                    keeper.spawn(time.monotonic())
    finally:
        stop_all(programs, signals)


def stop_all(programs: Sequence[Program], signals: Signals) -> None:
    """SIGTERM to all of them at once; kill what still runs after ten seconds, or at another Ctrl-C."""
    stops = signals.stops
    deadline = time.monotonic() + STOP_WITHIN_S
    for program in programs:
        program.tell(signal.SIGTERM)
    while any(program.running for program in programs) and signals.stops == stops and time.monotonic() < deadline:
        signals.wait()
    for program in programs:
        program.kill()


@contextlib.contextmanager
def lifeline() -> Iterator[int]:
    """The end of a pipe to hand to children; the other closes when this block, or this process, ends."""
    reader, writer = os.pipe()
    try:
        yield reader
    finally:
        os.close(reader)
        os.close(writer)


def follow_parent(reader: int) -> None:
    """In a child: stop this process, in order if it can, once the parent's end of the pipe is closed."""

    def watch() -> None:
        os.read(reader, 1)
        os.kill(os.getpid(), signal.SIGTERM)
        # Less than the parent would have given: engines that are its children are going as well.
        time.sleep(ORPHAN_STOP_WITHIN_S)
        os.killpg(0, signal.SIGKILL)

    # Not for the child's own children: one of them would keep its pipe open, and watch it for nobody.
    os.set_inheritable(reader, False)
    threading.Thread(target=watch, name="follow-parent", daemon=True).start()
