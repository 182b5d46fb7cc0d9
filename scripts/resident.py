"""The resident model: one process per node that keeps the core loaded and answers one request per item.

Started by scripts/extract.py, which also holds the other half of the protocol. A request is one line of JSON on a
Unix socket; an answer is lines of text that begin with a number: 100 a sign of life, 102 taken in hand, 200 done,
500 failed (501: failed, and more lines of the message follow).

It ends when it has had nothing to do for a while, when the Snakemakes that it works for are gone, and when its
working directory is; it never outlives the lock that its clients look at, and leaves no file behind.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import queue
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

REQUEST_LIMIT = 2**18  # bytes; the longest valid request is far below
SIGN_OF_LIFE_SECONDS = 2.0
WATCH_SECONDS = 0.5
MODEL_FILE = "results/model.json"


class Engines:
    """The model on its devices: one replica per GPU, or on the CPU one that all worker threads share."""

    def __init__(self, settings: dict[str, Any]):
        import model

        located = model.locate(json.loads(Path(MODEL_FILE).read_text(encoding="utf-8")), settings["cache_dir"])

        import diffusion  # slow, so after what may fail at once
        import items
        import torch

        diffusion.same_bits()
        device = settings["device"]
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise model.ModelError(f"device {device} was asked for, but torch sees no GPU here; take device cpu")
        devices = [f"cuda:{n}" for n in range(torch.cuda.device_count())] if device == "cuda" else [device]
        devices = devices[: settings.get("replicas")]
        self.models = [diffusion.Model(device=name, dtype=settings["dtype"], **located) for name in devices]
        # On a CPU a worker does an item from end to end; a GPU has one worker, and threads that open and save
        # pictures beside it.
        on_cpu = device == "cpu"
        slots = self.models * (min(settings["workers"], os.cpu_count() or 1) if on_cpu else 1)
        self.free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for slot in slots:
            self.free.put(slot)
        self.threads = len(slots) + (0 if on_cpu else 4)
        self.diffusion = diffusion
        self.recipe_digest = items.recipe_digest
        self.same_bits = diffusion.same_bits  # torch counts its threads for each of ours

    def do(self, request: dict[str, Any], wanted: Callable[[], bool]) -> str:
        """Do one item, in a thread of its own.

        Args:
            request: as `check_request` returns it.
            wanted: whether somebody still waits for it; if not, it is given up and nothing is written.

        Returns:
            Notes on what was done.

        Raises:
            ItemError: the item cannot be done, or its picture was changed meanwhile.
            InterruptedError: nobody waits for it any more.
        """

        def goes_on() -> None:
            if not wanted():
                raise InterruptedError("its Snakemake is gone")

        goes_on()
        started = time.monotonic()
        recipe = request["recipe"]
        before = _state(request["image"])
        picture, notes = self.models[0].prepare(request["image"], recipe)
        model = self.free.get()
        try:
            computing = time.monotonic()
            latent = model.latent(picture, recipe, goes_on)
            notes += model.prompt_notes(recipe)
            decoded = model.decode(latent) if request["picture"] else None
            seconds = time.monotonic() - computing
        finally:
            self.free.put(model)
        goes_on()
        self._unchanged(request["image"], before)
        # The latent comes last: with it the item is done.
        if decoded is not None:
            self.diffusion.write_whole(request["picture"], self.diffusion.picture_bytes(decoded))
        self.diffusion.write_whole(request["latent"], self.diffusion.latent_bytes(latent, self.recipe_digest(recipe)))
        try:
            self._unchanged(request["image"], before)
        except self.diffusion.ItemError:
            Path(request["latent"]).unlink()  # Snakemake would not notice it: the latent is newer
            raise
        shape = " x ".join(str(side) for side in latent.shape)
        notes += [f"latent {shape}", f"{seconds:.3f} s of {time.monotonic() - started:.3f} s on {model.device}"]
        return "; ".join(notes)

    def _unchanged(self, image: str, before: tuple[int, int] | None) -> None:
        if _state(image) != before:
            raise self.diffusion.ItemError("the picture was changed while it was read: run again")


class Resident:
    """Takes requests, has worker threads do them, and knows when to end."""

    def __init__(self, settings: dict[str, Any]):
        self.settings = settings
        # From the start of the process, so that importing is part of loading.
        self.started = time.monotonic() - (time.time() - psutil.Process().create_time())
        self.last_used = time.monotonic()
        self.in_hand = 0
        self.runs: dict[int, psutil.Process] = {}
        self.had_runs = False
        self.failure = ""
        self.engines: asyncio.Future[Engines] = asyncio.get_running_loop().create_future()
        self.directory = os.stat(".").st_ino, os.getcwd()

    async def load(self) -> None:
        """Load the model; a failure is kept for all who ask, and then the process ends."""
        try:
            engines = await asyncio.to_thread(Engines, self.settings)
        except Exception as error:
            print(f"loading failed: {error!r}", file=sys.stderr, flush=True)
            self.failure = f"the model could not be loaded: {error or type(error).__name__}"
            self.engines.cancel()
            return
        self.pool = ThreadPoolExecutor(engines.threads, initializer=engines.same_bits)
        seconds = time.monotonic() - self.started
        devices = ", ".join(str(model.device) for model in engines.models)
        at_once = engines.free.qsize()
        print(f"loaded the model on {devices} in {seconds:.1f} s, {at_once} at a time", flush=True)
        self.engines.set_result(engines)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client: one request, one answer."""
        if not _is_own_user(writer.get_extra_info("socket")):
            writer.close()
            return
        self.in_hand += 1
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client is gone; its item is dropped and the next one is served
        finally:
            self.in_hand -= 1
            self.last_used = time.monotonic()
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), timeout=30)
            request = check_request(json.loads(line), self.settings)
        except (ValueError, TypeError, RecursionError, TimeoutError) as error:
            _write_failure(writer, f"not a valid request: {error}")
            return await writer.drain()
        try:
            run = self.runs.get(request["run"]) or psutil.Process(request["run"])
        except (psutil.NoSuchProcess, ValueError):
            _write_failure(writer, f"the Snakemake that asks, process {request['run']}, is not there")
            return await writer.drain()
        self.runs[run.pid] = run
        self.had_runs = True
        writer.write(b"102 taken in hand\n")
        # A killed client, or the clients that outlive a killed Snakemake, must not write over what a later run makes.
        abandoned = threading.Event()
        work = asyncio.create_task(self._work(request, lambda: not abandoned.is_set() and _is_alive(run)))
        gone = asyncio.create_task(reader.read(1))  # a client says no more, so this returns when it hangs up
        try:
            while not work.done():
                await asyncio.wait({work, gone}, timeout=SIGN_OF_LIFE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    return
                if not work.done():
                    doing = "working on it" if self.engines.done() else "loading the model"
                    writer.write(f"100 {doing}, {time.monotonic() - self.started:.0f} s\n".encode())
                    await writer.drain()
            try:
                notes = work.result()
            except asyncio.CancelledError:
                _write_failure(writer, self.failure)
            except Exception as error:
                _write_failure(writer, explain(error, request))
            else:
                writer.write(f"200 {notes}\n".encode())
            await writer.drain()
        finally:
            abandoned.set()
            work.cancel()
            gone.cancel()

    async def _work(self, request: dict[str, Any], wanted: Callable[[], bool]) -> str:
        engines = await asyncio.shield(self.engines)
        return await asyncio.get_running_loop().run_in_executor(self.pool, engines.do, request, wanted)

    async def watch(self) -> None:
        """Return when it is time to end."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self.runs = {pid: run for pid, run in self.runs.items() if _is_alive(run)}
            inode, path = self.directory
            try:
                vanished = os.stat(path).st_ino != inode
            except OSError:
                vanished = True
            if vanished:
                return print("ending: the working directory is gone", flush=True)
            if self.in_hand:
                continue
            if self.failure:
                return print("ending: nothing loaded", flush=True)
            if self.had_runs and not self.runs:
                return print("ending: the run is over", flush=True)
            if time.monotonic() - self.last_used > self.settings["idle_seconds"]:
                return print("ending: nothing to do", flush=True)


def explain(error: Exception, request: dict[str, Any]) -> str:
    """A message for the user: which item, and what is wrong."""
    text = str(error) or type(error).__name__
    if type(error).__name__ not in ("ItemError", "ModelError"):
        text = f"{type(error).__name__}: {text}"
    if "OutOfMemory" in type(error).__name__:
        text += "\nTake a smaller image_size, dtype float16, or a device with more memory."
    return f"{request['image']}: {text}"


def check_request(request: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Check a request's form, and that it writes only into this working directory's result folders.

    Raises:
        ValueError: what is wrong with it.
    """
    kinds = {"image": str, "recipe": dict, "latent": str, "picture": (str, type(None)), "run": int}
    if not isinstance(request, dict) or request.keys() != kinds.keys():
        raise ValueError(f"a request has the keys {', '.join(kinds)}")
    for key, kind in kinds.items():
        if not isinstance(request[key], kind):
            raise ValueError(f"{key} is of the wrong kind")
    for key, folder in (("latent", settings["output_hidden_dir"]), ("picture", settings["output_image_dir"])):
        path = request[key]
        if path is not None and (folder is None or Path(path).resolve().parent != Path(folder).resolve()):
            raise ValueError(f"{path!r} is not in the result folder {folder!r}")
    return request


def _state(path: str) -> tuple[int, int] | None:
    """What differs when a file was changed; None if it is not there. (Network disks may invent inode numbers anew.)"""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _write_failure(writer: asyncio.StreamWriter, message: str) -> None:
    *first, last = message.splitlines() or [""]
    writer.write("".join([*(f"501 {line}\n" for line in first), f"500 {last}\n"]).encode(errors="replace"))


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


async def reside(socket_path: Path, lock_path: Path, settings: dict[str, Any]) -> None:
    """Serve until it is time to end; leave nothing behind."""
    _sweep(socket_path.parent, lock_path)
    socket_path.unlink(missing_ok=True)
    resident = Resident(settings)
    server = await asyncio.start_unix_server(resident.serve, socket_path, limit=REQUEST_LIMIT, backlog=1024)
    loading = asyncio.create_task(resident.load())
    watching = asyncio.create_task(resident.watch())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, watching.cancel)
    await asyncio.wait({watching})
    server.close()
    loading.cancel()
    for path in (socket_path, lock_path):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # others live there
        socket_path.parent.rmdir()
    # At once, without waiting for threads that load or compute for nobody; the lock is free when the process is gone.
    sys.stdout.flush()
    os._exit(0)


def _sweep(directory: Path, own_lock: Path) -> None:
    """Take away what killed residents left: sockets whose lock nobody holds."""
    for lock in directory.glob("*.lock"):
        if lock == own_lock:
            continue
        with contextlib.suppress(OSError), lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_ino != lock.stat().st_ino:
                continue  # a new resident has made it anew
            lock.with_suffix(".sock").unlink(missing_ok=True)
            lock.unlink(missing_ok=True)


def once(settings: dict[str, Any], request: dict[str, Any]) -> int:
    """Load the model, do one item and say how it went: the way without a resident."""
    try:
        check_request(request, settings)
        started = time.monotonic()
        engines = Engines(settings | {"workers": 1, "replicas": 1})
        seconds = time.monotonic() - started
        print(f"{engines.do(request, lambda: True)} after loading for {seconds:.1f} s")
    except Exception as error:
        print(explain(error, request), file=sys.stderr)
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=json.loads, required=True)
    parser.add_argument("--socket", type=Path, help="where to listen")
    parser.add_argument("--lock", type=Path, help="the lock file, held by a descriptor from the client")
    parser.add_argument("--once", type=json.loads, help="do this request without listening")
    arguments = parser.parse_args()
    if arguments.once:
        return once(arguments.settings, arguments.once)
    asyncio.run(reside(arguments.socket, arguments.lock, arguments.settings))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
