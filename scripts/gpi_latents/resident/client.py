"""Ask this node's resident model for one latent, and wait; scripts/extract.py runs it once per item.

    python -I -S extract.py --plan DIR --resident NAME --workers N --run PID --on-error stop|skip --item PLACE
        --output LATENT [PICTURE]

PLACE is where the item's line begins in the plan's items.jsonl: prompts and paths do not stand on the command line,
which all users of the machine can read. It starts the resident if none is running. Only light modules of the standard
library are imported, and the others where they are needed: with json, argparse and socket, starting takes three times
as long.
"""

import _signal  # what the modules signal and socket wrap; importing these costs as much as starting Python
import _socket
import os
import sys
import time

PATIENCE = 120  # seconds without any sign of life after which the resident is given up
PAUSE = 0.05  # seconds between two attempts to reach it
ATTEMPTS = 2  # so that one crash of the resident costs an item nothing
WORKING = "working on it"  # as joblog.WORKING
MODEL = "results/model.json"
LONGEST_SOCKET_PATH = 107  # bytes, Linux's limit
LONGEST_NAME = 48  # bytes of these that the file's own name may take


class ResidentDied(Exception):
    """The resident ended before it listened, or before it began with this item."""


class DiedAtWork(ResidentDied):
    """The resident ended while it was processing this item."""


class GaveUp(Exception):
    """The item cannot be processed now, and so may be others; the text says why."""


class ItemFailed(GaveUp):
    """The item itself is at fault."""


def private_directory() -> str:
    """A directory on this node that only this user can enter, made if need be.

    It is the first of some names that nobody else has taken, so that all clients find the same.

    Raises:
        FileNotFoundError: an ending resident has just removed it.
        GaveUp: none can be made.
    """
    node = os.uname().nodename.partition(".")[0][-16:]  # in case that TMPDIR is shared between nodes
    bases = [os.environ.get("TMPDIR"), "/tmp"]
    # Last, since it goes when the user logs out, and the run may go on.
    if (own := os.environ.get("XDG_RUNTIME_DIR")) and os.path.isdir(own) and is_private(own):
        bases.append(own)
    places = [f"{base}/gpi-latents-{os.getuid()}-{node}" for base in bases if base]
    for path in [f"{place}{more}" for place in places for more in ("", "-1", "-2", "-3", "-4")]:
        if len(os.fsencode(path)) > LONGEST_SOCKET_PATH - LONGEST_NAME:
            continue
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        except OSError:
            continue
        if is_private(path):
            return path
    raise GaveUp("no folder for the resident model's socket: set TMPDIR to a short path on this machine's own disk")


def is_private(path: str) -> bool:
    """Whether it is a directory of this user, no link, that nobody else can enter."""
    found = os.lstat(path)
    return found.st_uid == os.getuid() and (found.st_mode & 0o170077) == 0o040000


def start(directory: str, name: str, options: dict[str, str], lock: int) -> None:
    """Start the resident; it inherits the lock and holds it for its life."""
    import subprocess

    script = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "resident.py")
    command = [sys.executable, script, "serve", "--plan", options["--plan"], "--workers", options["--workers"]]
    command += ["--socket", f"{directory}/{name}.sock", "--lock", f"{directory}/{name}.lock"]
    log = open_log(name)
    # A rule without a thread sets them to 0. Each worker of the resident has one.
    environment = {key: "1" if key.endswith("_THREADS") else value for key, value in os.environ.items()}
    try:
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[lock],
            start_new_session=True,  # Ctrl-C in the terminal is not for it
        )
    except OSError as error:
        raise GaveUp(f"the resident model cannot be started with {sys.executable}: {error}") from None
    finally:
        os.close(log)


def open_log(name: str) -> int:
    """The resident's log; none where it cannot be written, since the latents are worth more."""
    # No link, and no pipe that nobody reads, which others put into a shared folder.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        os.makedirs("logs", exist_ok=True)
        return os.open(log_path(name), flags, 0o666)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)


def connect(name: str, options: dict[str, str]) -> _socket.socket:
    """A connection to the resident, which is started if none is running."""
    import fcntl

    started = False
    attempts = 0  # counted instead of the clock, which goes on while this process is stopped
    while attempts < PATIENCE / PAUSE:
        if attempts:
            time.sleep(PAUSE)
        attempts += 1
        try:
            directory = private_directory()
        except FileNotFoundError:
            continue
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        connection.settimeout(PATIENCE)
        try:
            connection.connect(f"{directory}/{name}.sock")
            return connection
        except BlockingIOError:  # too many connect at once
            connection.close()
            continue
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
        try:
            lock = os.open(f"{directory}/{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # an ending resident has just removed the directory
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_ino == os.stat(f"{directory}/{name}.lock").st_ino:
                # No resident is running: it holds the lock from before its socket exists until its process has ended.
                if started:
                    raise ResidentDied("the resident model ended before it listened")
                started = True
                attempts = 1
                start(directory, name, options, lock)
        except (BlockingIOError, FileNotFoundError):
            pass  # one is starting or ending
        finally:
            os.close(lock)
    raise GaveUp(f"the resident model does not answer, though {directory}/{name}.lock is held")


def ask(connection: _socket.socket, request: bytes) -> bool:
    """Send the request and log the answer; of its signs of life, only what is new.

    Returns:
        Whether the item is done; False if another resident has to be asked, since this one ended before its turn.
    """
    accepted, begun, received, state, reason = False, False, b"", "", ""
    try:
        connection.sendall(request + b"\n")
        while chunk := receive(connection):
            *lines, received = (received + chunk).split(b"\n")
            for line in lines:
                code, _, text = line.decode(errors="replace").partition(" ")
                if code == "200":
                    say(text)
                    return True
                if code == "422":
                    raise ItemFailed(reason + text)
                if code == "500":
                    raise GaveUp(reason + text)
                if code == "503":
                    return False
                if code == "102":
                    accepted = True
                elif code == "103":
                    begun = True
                elif code == "501":
                    reason += text + "\n"
                elif text != state:
                    state = text
                    say(state)
    except ConnectionError:
        pass
    finally:
        connection.close()
    if begun:
        raise DiedAtWork("the resident model ended while it was processing this item (out of memory? killed?)")
    if accepted and state != WORKING:
        raise ResidentDied("the resident model ended while it was loading, or at another item (out of memory? killed?)")
    return False


def receive(connection: _socket.socket) -> bytes:
    """What comes next, nothing at the end.

    Raises:
        GaveUp: nothing came for `PATIENCE` seconds. Each is waited for by itself: the time in which this process was
            stopped, as when the machine sleeps, counts as one at most.
    """
    connection.settimeout(1.0)
    for _ in range(PATIENCE):
        try:
            return connection.recv(65536)
        except TimeoutError:
            pass
    raise GaveUp(
        f"the resident model has given no sign of life for {PATIENCE} s: end that process (its command line contains "
        "resident.py) and run again"
    )


def say(text: str) -> None:
    """Write a line into the job's log. Where that is not possible, as on a full disk, the item is made all the same."""
    try:
        os.write(1, f"{text}\n".encode(errors="backslashreplace"))
    except OSError:
        return


def log_path(name: str) -> str:
    return f"logs/resident-{os.uname().nodename}-{name}.log"


def log_end(name: str) -> str:
    try:
        # What a link leads to may be for this user alone, and others can read the item's log.
        descriptor = os.open(log_path(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, encoding="utf-8", errors="replace") as log:
            return f"The end of {log_path(name)}:\n" + "".join(log.readlines()[-15:])
    except OSError:
        return ""


def extract(name: str, options: dict[str, str], request: bytes) -> None:
    """Have one item extracted, by a second resident if the first one dies.

    Raises:
        GaveUp: the item cannot be processed.
        ResidentDied: every resident died.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            for _ in range(100):
                if ask(connect(name, options), request):
                    return
                time.sleep(PAUSE)
            raise GaveUp("the resident model ends whenever it is asked")
        except ResidentDied as error:
            if attempt == ATTEMPTS:
                raise
            say(f"{error}; trying again with a new one")
            take_turn(options["--plan"])
            request = b'{"alone":true,' + request[1:]  # and so not beside one that is tried for the first time


def take_turn(plan: str) -> None:
    """Wait until this is the only item that is tried again, until its end.

    All items that a resident was processing see it die; when they are tried one by one, the one that ended it is found.
    """
    import fcntl

    turn = os.open(f"{plan}/items.jsonl", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(turn, fcntl.LOCK_EX)
    except OSError:
        return  # the disk has no locks


def leave_out(outputs: list[str]) -> None:
    """Make the results of an item that failed empty files, which the rule stack leaves out."""
    for path in outputs:
        if os.path.lexists(path):
            os.unlink(path)  # never to be written through, if it is a link
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))


def request_line(options: dict[str, str], latent: str, picture: str | None = None) -> bytes:
    """What the resident is asked: the item's line of the plan, with its results and the run.

    Raises:
        GaveUp: the plan is not there.
    """
    try:
        with open(f"{options['--plan']}/items.jsonl", "rb") as items:  # as plan.ITEMS
            items.seek(int(options["--item"]))
            line = items.readline()
    except OSError as error:
        advice = "run snakemake again, after making room if the disk is full"
        raise GaveUp(f"{error.filename}, the plan of this run, cannot be read: {error.strerror}; {advice}") from None
    results = b'{"run":%b,"latent":%b,"picture":%b,' % (options["--run"].encode(), as_json(latent), as_json(picture))
    return results + line[1:].rstrip()


def as_json(path: str | None) -> bytes:
    """A path, which has no control characters, as JSON."""
    return b'"%b"' % os.fsencode(path).replace(b"\\", b"\\\\").replace(b'"', b'\\"') if path else b"null"


def main() -> int:
    """Run a command line, `sys.argv`; returns the exit code."""
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C ends it without a traceback in the item's log
    outputs = len(sys.argv) - sys.argv[::-1].index("--output")
    options = dict(zip(sys.argv[1 : outputs - 1 : 2], sys.argv[2 : outputs - 1 : 2], strict=True))
    # One resident per node, model and Slurm job: two Slurm jobs have a GPU and an end of their own each.
    # The model's file is written again when it is another model.
    try:
        model = f"{os.stat(MODEL).st_mtime_ns:x}"
        name = f"{options['--resident']}-{model}-{os.environ.get('SLURM_JOB_ID', '0')}"
        extract(name, options, request_line(options, *sys.argv[outputs:]))
    except (GaveUp, ResidentDied) as error:
        say(f"error: {error}")  # as joblog.ERROR
        if isinstance(error, ResidentDied):
            say(log_end(name))
        if options["--on-error"] == "skip" and isinstance(error, (ItemFailed, DiedAtWork)):
            leave_out(sys.argv[outputs:])
            return 0
        return 1
    except OSError as error:
        say(f"error: the resident model cannot be reached: {error}")
        return 1
    return 0
