"""The small script that an extraction job runs: ask this node's resident model for one latent, and wait.

    python -I -S extract.py --plan DIR --resident NAME --workers N --run PID --image IMAGE --recipe JSON
                            --output LATENT [PICTURE]

It starts the resident if none is running. Only light modules of the standard library are imported, and the others where
they are needed, since this runs once per item: with json, argparse and socket, starting takes three times as long.
"""

import _socket  # what the module socket wraps; importing that costs as much as starting Python
import os
import sys
import time

PATIENCE = 120.0  # seconds without any sign of life after which the resident is given up
ATTEMPTS = 2  # so that one crash of the resident costs an item nothing
MODEL = "results/model.json"
LONGEST_SOCKET_PATH = 107  # bytes, Linux's limit
LONGEST_NAME = 48  # bytes of these that the file's own name may take


class ResidentDied(Exception):
    """The resident ended while it was processing this item, or before it listened."""


class GaveUp(Exception):
    """The item cannot be processed; the text says why."""


def private_directory() -> str:
    """A directory on this node that only this user can enter, made if need be."""
    node = os.uname().nodename.partition(".")[0][-16:]  # in case that TMPDIR is shared between nodes
    for base in (os.environ.get("TMPDIR"), "/tmp"):
        path = f"{base}/gpi-latents-{os.getuid()}-{node}"
        if not base or len(os.fsencode(path)) > LONGEST_SOCKET_PATH - LONGEST_NAME:
            continue
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        except OSError:
            continue
        found = os.lstat(path)
        if found.st_uid != os.getuid() or (found.st_mode & 0o170077) != 0o040000:
            raise GaveUp(f"{path} is not a private directory of yours: remove it, or set TMPDIR to another folder")
        return path
    raise GaveUp("no folder for the resident model's socket: set TMPDIR to a short path on this machine's own disk")


def start(directory: str, name: str, options: dict[str, str], lock: int) -> None:
    """Start the resident; it inherits the lock and holds it for its life."""
    import subprocess

    os.makedirs("logs", exist_ok=True)
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "resident.py")
    command = [sys.executable, script, "serve", "--plan", options["--plan"], "--workers", options["--workers"]]
    command += ["--socket", f"{directory}/{name}.sock", "--lock", f"{directory}/{name}.lock"]
    try:
        with open(log_path(name), "ab") as log:
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock],
                start_new_session=True,  # Ctrl-C in the terminal is not for it
            )
    except OSError as error:
        raise GaveUp(f"the resident model cannot be started with {sys.executable}: {error}") from None


def connect(name: str, options: dict[str, str]) -> _socket.socket:
    """A connection to the resident, which is started if none is running."""
    import fcntl

    started = False
    silent_since = time.monotonic()
    while time.monotonic() - silent_since < PATIENCE:
        try:
            directory = private_directory()
        except FileNotFoundError:
            continue  # an ending resident has just removed it
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        connection.settimeout(PATIENCE)
        try:
            connection.connect(f"{directory}/{name}.sock")
            return connection
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
        try:
            lock = os.open(f"{directory}/{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_ino == os.stat(f"{directory}/{name}.lock").st_ino:
                # No resident is running: it holds the lock from before its socket exists until its process has ended.
                if started:
                    raise ResidentDied("the resident model ended before it listened")
                started = True
                silent_since = time.monotonic()
                start(directory, name, options, lock)
        except (BlockingIOError, FileNotFoundError):
            pass  # one is starting or ending
        finally:
            os.close(lock)
        time.sleep(0.05)
    raise GaveUp(f"the resident model does not answer, though {directory}/{name}.lock is held")


def ask(connection: _socket.socket, request: str) -> bool:
    """Send the request and print the answer; of its signs of life, only what is new.

    Returns:
        Whether the item was accepted; False if the resident was about to end, and another has to be asked.
    """
    accepted = False
    received, state, reason = b"", "", ""
    try:
        connection.sendall(request.encode() + b"\n")
        while chunk := connection.recv(65536):
            *lines, received = (received + chunk).split(b"\n")
            for line in lines:
                code, _, text = line.decode(errors="replace").partition(" ")
                if code == "200":
                    print(text)
                    return True
                if code == "500":
                    raise GaveUp(reason + text)
                if code == "102":
                    accepted = True
                elif code == "501":
                    reason += text + "\n"
                elif text != state:
                    state = text
                    print(state, flush=True)
    except TimeoutError:
        raise GaveUp(
            f"the resident model has given no sign of life for {PATIENCE:.0f} s: end that process (its command line "
            "contains resident.py) and run again"
        ) from None
    except ConnectionError:
        pass
    finally:
        connection.close()
    if accepted:
        raise ResidentDied("the resident model ended while it was processing this item (out of memory? killed?)")
    return False


def log_path(name: str) -> str:
    return f"logs/resident-{os.uname().nodename}-{name}.log"


def log_end(name: str) -> str:
    try:
        with open(log_path(name), encoding="utf-8", errors="replace") as log:
            return f"The end of {log_path(name)}:\n" + "".join(log.readlines()[-15:])
    except OSError:
        return ""


def extract(name: str, options: dict[str, str], request: str) -> None:
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
                time.sleep(0.05)
            raise GaveUp("the resident model ends whenever it is asked")
        except ResidentDied as error:
            if attempt == ATTEMPTS:
                raise
            print(f"{error}; trying again with a new one", flush=True)


def as_json(path: str) -> str:
    """A path, which has no control characters, as JSON."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def main() -> int:
    outputs = len(sys.argv) - sys.argv[::-1].index("--output")
    options = dict(zip(sys.argv[1 : outputs - 1 : 2], sys.argv[2 : outputs - 1 : 2], strict=True))
    latent, *picture = map(as_json, sys.argv[outputs:])
    request = (
        f'{{"run":{options["--run"]},"image":{as_json(options["--image"])},"recipe":{options["--recipe"]},'
        f'"latent":{latent},"picture":{picture[0] if picture else "null"}}}'
    )
    # One resident per node, model and Slurm job: two Slurm jobs have a GPU and an end of their own each.
    # The model's file is written again when it is another model.
    model = f"{os.stat(MODEL).st_mtime_ns:x}"
    name = f"{options['--resident']}-{model}-{os.environ.get('SLURM_JOB_ID', '0')}"
    try:
        extract(name, options, request)
    except (GaveUp, ResidentDied) as error:
        print(f"error: {error}")  # as joblog.ERROR
        if isinstance(error, ResidentDied):
            print(log_end(name))
        return 1
    except OSError as error:
        print(f"error: the resident model cannot be reached: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
