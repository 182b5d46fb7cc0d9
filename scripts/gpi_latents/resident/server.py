"""The resident model: one process per node that keeps the model loaded and answers one request per item.

Started by client.py, which has the other half of the protocol. A request is one line of JSON on a Unix socket.
An answer is lines of text that begin with a number: 102 accepted, 103 the model is loaded and the item's turn has come,
100 what is being done (a sign of life, every two seconds), 200 finished, 422 the item itself is at fault, 500 anything
else has failed (501: a line of the message that goes before either), 503 ask again.

It ends when it has had nothing to do for a while, when the Snakemakes that it works for have ended, when its working
directory is moved or removed, and when an item has made no progress for too long: its thread cannot be ended, so it
fails, those being made are finished, and the others are asked of the next resident; of a batch that hangs, each item is
tried again there. It holds the lock that its clients look at until its process has ended, and leaves no file behind.

An item that is tried again after a resident ended is made alone, so that no other item ends it a second time.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from gpi_latents import joblog
from gpi_latents.errors import ItemError, UserError
from gpi_latents.resident.engine import Engine, Request
from gpi_latents.resident.progress import IN_BATCH, Progress
from gpi_latents.resident.protocol import explain, failure, parse_request

REQUEST_LIMIT = 2**18  # bytes; the longest valid request is far below
REQUEST_SECONDS = 30.0  # that a request may take to come
SIGN_OF_LIFE_SECONDS = 2.0
WATCH_SECONDS = 0.5
ASK_AGAIN = b"503 ask again\n"
LOADING = f"100 {joblog.LOADING}\n".encode()
LOADED = f"100 {joblog.WORKING}\n".encode()
BEGUN = b"103 begun\n"


class Ending(Exception):
    """The resident is about to end, and begins no more items."""


class Resident:
    """Accepts requests, lets worker threads process them, and knows when to end.

    Args:
        config: as `settings.load_config` returns it.
        workers: items at a time on a CPU.
    """

    def __init__(self, config: Mapping[str, Any], workers: int):
        self.config = config
        self.workers = workers
        # From the start of the process, so that importing is part of loading.
        self.started = time.monotonic() - (time.time() - psutil.Process().create_time())
        self.last_used = time.monotonic()
        self.clients = 0
        self.runs: dict[int, psutil.Process] = {}
        self.had_runs = False
        self.failure = ""
        self.engine: asyncio.Future[Engine] = asyncio.get_running_loop().create_future()
        self.is_ending = False  # for an item that makes no progress
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.items: set[Progress] = set()
        self.turn = asyncio.Lock()  # to begin an item; who has to be alone keeps it to the end
        self.at_work: dict[asyncio.Future[joblog.Finished], Progress] = {}  # of killed clients too
        self.directory = os.stat(".").st_ino, os.getcwd()

    async def load(self) -> None:
        """Load the model; a failure is kept for all who ask, and then the process ends."""
        gc.disable()  # imports make many objects, none of them garbage: looking through them takes half a second
        try:
            engine = await asyncio.to_thread(Engine, self.config, self.workers)
        except Exception as error:
            self.failure = f"the model could not be loaded: {error or type(error).__name__}"
            self.engine.cancel()
            return print(f"loading failed: {error!r}", file=sys.stderr, flush=True)
        gc.freeze()
        gc.enable()
        self.pool = ThreadPoolExecutor(engine.threads, initializer=engine.same_bits)
        self.engine.set_result(engine)
        seconds = time.monotonic() - self.started
        devices = ", ".join(_device(model.device) for model in engine.models)
        print(f"loaded the model on {devices} in {seconds:.1f} s, {engine.at_once} at a time", flush=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client: one request, one answer."""
        if not _is_own_user(writer.get_extra_info("socket")):
            writer.close()
            return
        self.clients += 1
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has hung up; its item is dropped and the next one is served
        finally:
            self.clients -= 1
            self.last_used = time.monotonic()
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), timeout=REQUEST_SECONDS)
            request, run_pid = parse_request(json.loads(line), self.config)
        except TimeoutError:  # it is no client, or the machine slept meanwhile
            writer.write(ASK_AGAIN)
            return await writer.drain()
        except (ValueError, TypeError, RecursionError) as error:
            writer.write(failure(f"not a valid request: {error}"))
            return await writer.drain()
        try:
            run = self.runs.get(run_pid) or psutil.Process(run_pid)
        except (psutil.NoSuchProcess, ValueError):
            writer.write(failure(f"the Snakemake that asks, process {run_pid}, is not running"))
            return await writer.drain()
        self.runs[run.pid] = run
        self.had_runs = True
        writer.write(b"102 accepted\n")
        await self._extract(request, run, reader, writer)

    async def _extract(
        self, request: Request, run: psutil.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        # A killed client, or the clients that outlive a killed Snakemake, must not write over what a later run makes.
        abandoned = threading.Event()

        def check() -> None:
            if abandoned.is_set() or not _is_alive(run):
                raise InterruptedError("its Snakemake has ended")
            if self.is_ending and item.steps == 0:
                raise Ending

        item = Progress(self.config["item_timeout"], check)
        self.items.add(item)
        work = asyncio.create_task(self._work(request, item, writer))
        hung_up = asyncio.create_task(reader.read(1))  # a client sends nothing more, so this returns when it hangs up
        events: set[asyncio.Future] = {work, hung_up, self.ended}
        problem = ""
        try:
            while not work.done() and not problem:
                await asyncio.wait(events, timeout=SIGN_OF_LIFE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if hung_up.done():
                    return
                if self.ended.done():
                    break
                if not work.done() and not (problem := item.problem(SIGN_OF_LIFE_SECONDS)):
                    writer.write(LOADED if self.engine.done() else LOADING)
                    await writer.drain()
            if problem:
                self.is_ending = True
                if item.doing in IN_BATCH and self.config["batch_size"] > 1 and not request.alone:
                    return  # any item of its batch may be to blame: each is tried again alone
            writer.write(failure(f"{request.image}: {problem}", 422) if problem else self._answer_of(work, request))
            await writer.drain()
        finally:
            self.items.discard(item)
            abandoned.set()
            work.cancel()
            hung_up.cancel()

    async def _work(self, request: Request, item: Progress, writer: asyncio.StreamWriter) -> joblog.Finished:
        engine = await asyncio.shield(self.engine)
        if request.alone:
            writer.write(LOADED)  # so that its client knows: if the process ends before its turn, another item ended it
        async with self.turn:
            if request.alone and self.at_work:
                await asyncio.wait(self.at_work)
            writer.write(BEGUN)
            work = asyncio.get_running_loop().run_in_executor(self.pool, engine.extract, request, item.step)
            self.at_work[work] = item
            work.add_done_callback(self.at_work.pop)
            if request.alone:
                await asyncio.wait([work])
        try:
            return await asyncio.shield(work)
        except Ending:
            await asyncio.shield(self.ended)  # only then there is another to ask
            raise

    def _answer_of(self, work: asyncio.Task[joblog.Finished], request: Request) -> bytes:
        if not work.done():
            return ASK_AGAIN
        try:
            return f"200 {joblog.line(work.result())}\n".encode()
        except asyncio.CancelledError:
            return failure(self.failure)
        except Ending:
            return ASK_AGAIN
        except Exception as error:
            return failure(explain(error, request), 422 if isinstance(error, ItemError) else 500)

    async def watch(self) -> None:
        """Return when it is time to end."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self.runs = {pid: run for pid, run in self.runs.items() if _is_alive(run)}
            for item in set(self.at_work.values()) - self.items:  # their clients were killed
                self.is_ending |= bool(item.problem(WATCH_SECONDS))
            if reason := self._reason_to_end():
                return print(f"ending: {reason}", flush=True)

    def _reason_to_end(self) -> str:
        inode, path = self.directory
        try:
            vanished = os.stat(path).st_ino != inode
        except OSError:
            vanished = True
        if vanished:
            return "the working directory was moved or removed"
        if self.is_ending and not any(item.is_at_work for item in self.items):
            return "an item made no progress"
        if self.clients:
            return ""
        if self.failure:
            return "nothing loaded"
        if self.had_runs and not self.runs:
            return "the run is over"
        if time.monotonic() - self.last_used > self.config["resident_idle_seconds"]:
            return "nothing to do"
        return ""


async def serve_until_idle(socket_path: Path, lock_path: Path, config: Mapping[str, Any], workers: int) -> None:
    """Serve until it is time to end; leave nothing behind.

    Args:
        socket_path: where to listen.
        lock_path: the lock file, held by a descriptor that was inherited from the client.
        config: as `settings.load_config` returns it.
        workers: items at a time on a CPU.
    """
    _sweep(socket_path.parent, lock_path)
    socket_path.unlink(missing_ok=True)
    resident = Resident(config, workers)
    server = await asyncio.start_unix_server(resident.serve, socket_path, limit=REQUEST_LIMIT, backlog=1024)
    loading = asyncio.create_task(resident.load())
    watching = asyncio.create_task(resident.watch())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, watching.cancel)
    await asyncio.wait({watching})
    server.close()
    loading.cancel()
    for path in (socket_path, lock_path):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # others are there
        socket_path.parent.rmdir()
    resident.ended.set_result(None)
    for _ in range(100 if resident.is_ending else 0):
        if resident.clients:
            await asyncio.sleep(0.05)  # until they know that they have to ask another
    # At once, without waiting for threads that load or compute for nobody; the lock is free when the process has ended.
    os._exit(0)


def once(config: Mapping[str, Any], image: str, recipe: dict[str, Any], latent: str, picture: str | None = None) -> str:
    """Load the model and extract one item: the way without a resident.

    A thread may be left behind, which does not end.

    Returns:
        The line for the item's log.

    Raises:
        ItemError: the item itself cannot be processed.
        UserError: anything else has failed, as when the model cannot be loaded.
    """
    request = Request(image, recipe, latent, picture, alone=True)
    item = Progress(config["item_timeout"])
    try:
        engine = Engine(config, workers=1, replicas=1)
        work = ThreadPoolExecutor(1, initializer=engine.same_bits).submit(engine.extract, request, item.step)
        while not work.done():
            futures.wait([work], timeout=SIGN_OF_LIFE_SECONDS)
            if not work.done() and (problem := item.problem(SIGN_OF_LIFE_SECONDS)):
                raise ItemError(problem)
        return joblog.line(work.result())
    except Exception as error:
        kind = ItemError if isinstance(error, ItemError) else UserError
        raise kind(joblog.ERROR + explain(error, request)) from error


def _device(device: Any) -> str:
    """A device of torch as the log names it, such as `cuda:0 NVIDIA A100-SXM4-80GB`; `slurm_use.py` reads it there."""
    if not str(device).startswith("cuda"):
        return str(device)
    import torch

    return f"{device} {torch.cuda.get_device_name(device)}"


def _is_own_user(connection: socket.socket) -> bool:
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # macOS: the private directory alone keeps others out
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", credentials)[1] == os.getuid()


def _is_alive(run: psutil.Process) -> bool:
    try:
        return run.is_running() and run.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _sweep(directory: Path, own_lock: Path) -> None:
    """Remove what killed residents left: sockets whose lock nobody holds."""
    for lock in directory.glob("*.lock"):
        if lock == own_lock:
            continue
        with contextlib.suppress(OSError), lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_ino != lock.stat().st_ino:
                continue  # a new resident has made it again
            lock.with_suffix(".sock").unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
