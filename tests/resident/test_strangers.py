"""The resident among strangers: whatever comes over its socket, it refuses that and serves the next."""

from __future__ import annotations

import json
import socket
import threading

import pytest
from helpers.bench import finished
from helpers.study import residents
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = [pytest.mark.fault("stranger"), pytest.mark.long]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
NEARLY = st.fixed_dictionaries(dict.fromkeys(["image", "recipe", "latent", "picture", "run"], JSON))
ESCAPING = st.fixed_dictionaries(
    {
        "image": st.text(max_size=30),
        "recipe": st.dictionaries(st.text(max_size=10), JSON, max_size=4),
        "latent": st.sampled_from(["../x.pt", "/tmp/x.pt", "results/hidden/../../x.pt", "x.pt", "results/hidden"]),
        "picture": st.none() | st.text(max_size=30),
        "run": st.integers(),
    }
)
REQUESTS = st.one_of(
    st.binary(max_size=200),
    st.one_of(JSON, NEARLY, ESCAPING).map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")),
)


def test_the_resident_survives_10000_malformed_requests(shared):
    path = shared.socket_path()
    resident = shared.resident()
    before = {file for file in shared.folder.rglob("*") if file.suffix == ".pt"}
    sent = []

    @settings(
        max_examples=10_000, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(REQUESTS)
    def fuzz(content: bytes) -> None:
        sent.append(content)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(path)
            connection.sendall(content.replace(b"\n", b" ") + b"\n")
            answer = connection.recv(4096)
            assert answer.startswith((b"500 ", b"501 ")), (content, answer)

    fuzz()
    assert len(sent) >= 10_000
    assert residents(shared.folder) == [resident]
    assert resident.memory_info().rss < 2**30
    finished(shared.client("next"))
    after = {file for file in shared.folder.rglob("*") if file.suffix == ".pt"}
    assert {file.name for file in after - before} == {"next.pt"}


def test_the_resident_serves_on_beside_strangers_that_send_nothing_or_too_much(shared):
    path = shared.socket_path()
    silent = [socket.socket(socket.AF_UNIX) for _ in range(50)]
    for connection in silent:
        connection.connect(path)
    flood = socket.socket(socket.AF_UNIX)
    flood.connect(path)

    def pour() -> None:
        try:
            while True:
                flood.sendall(b"x" * 2**20)
        except OSError:
            pass  # refused

    pouring = threading.Thread(target=pour)
    pouring.start()
    pouring.join(30)
    assert not pouring.is_alive()
    finished(shared.client("beside"))
    assert shared.resident().memory_info().rss < 2**30
    for connection in [*silent, flood]:
        connection.close()
