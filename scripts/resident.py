"""The resident model: `serve` answers the requests of scripts/extract.py, `once` loads the model for one item."""

import argparse
import asyncio
import os
from pathlib import Path

from gpi_latents.errors import ItemError, exit_code
from gpi_latents.files import write_whole
from gpi_latents.plan import read_config, read_item
from gpi_latents.resident import log
from gpi_latents.resident.server import once, serve_until_idle

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser("serve", help="answer requests until there is nothing to do")
    serving.add_argument("--workers", type=int, required=True, help="items at a time on a CPU")
    serving.add_argument("--socket", type=Path, required=True, help="where to listen")
    serving.add_argument("--lock", type=Path, required=True, help="the lock file, held by the client's descriptor")
    single = commands.add_parser("once", help="extract one item and end")
    single.add_argument("--item", type=int, required=True, help="where its line begins in the plan, in bytes")
    single.add_argument("--on-error", choices=["stop", "skip"], required=True, help="whether a failed item is an error")
    single.add_argument("--output", nargs="+", required=True, help="the latent, and the picture if one is wanted")
    for command in (serving, single):
        command.add_argument("--plan", type=Path, required=True, help="folder with the plan of the run")
    arguments = parser.parse_args()
    log.keep_going()
    if arguments.command == "serve":
        config = read_config(arguments.plan)
        asyncio.run(serve_until_idle(arguments.socket, arguments.lock, config, arguments.workers))

    def extract() -> str:
        item = read_item(arguments.plan, arguments.item)
        try:
            return once(read_config(arguments.plan), item["image"], item["recipe"], *arguments.output)
        except ItemError as error:
            if arguments.on_error == "stop":
                raise
            for path in arguments.output:
                write_whole(path, b"")  # the rule stack leaves it out
            return str(error)

    try:
        code = exit_code(extract)
    except KeyboardInterrupt:
        code = 130
    os._exit(code)  # without waiting for a thread that may never end
