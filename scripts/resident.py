"""The resident model: `serve` answers the requests of scripts/extract.py, `once` loads the model for one item."""

import argparse
import asyncio
import json
import sys
from pathlib import Path

from gpi_latents.errors import exit_code
from gpi_latents.plan import read_config
from gpi_latents.resident.server import once, serve_until_idle

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser("serve", help="answer requests until there is nothing to do")
    serving.add_argument("--workers", type=int, required=True, help="items at a time on a CPU")
    serving.add_argument("--socket", type=Path, required=True, help="where to listen")
    serving.add_argument("--lock", type=Path, required=True, help="the lock file, held by the client's descriptor")
    single = commands.add_parser("once", help="extract one item and end")
    single.add_argument("--image", required=True)
    single.add_argument("--recipe", type=json.loads, required=True, help="JSON")
    single.add_argument("--output", nargs="+", required=True, help="the latent, and the picture if one is wanted")
    for command in (serving, single):
        command.add_argument("--plan", type=Path, required=True, help="folder with the plan of the run")
    given = sys.argv[1:]
    if "--image" in given:  # argparse takes a file name that begins with a dash only after an equals sign
        place = given.index("--image")
        given[place : place + 2] = ["=".join(given[place : place + 2])]
    arguments = parser.parse_args(given)
    if arguments.command == "once":
        image, recipe, outputs = arguments.image, arguments.recipe, arguments.output
        raise SystemExit(exit_code(lambda: once(read_config(arguments.plan), image, recipe, *outputs)))
    config = read_config(arguments.plan)
    asyncio.run(serve_until_idle(arguments.socket, arguments.lock, config, arguments.workers))
