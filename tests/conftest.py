"""For every test: no network but loopback, one torch thread, no Hub."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

torch.set_num_threads(1)


def _is_loopback(family: int, address: object) -> bool:
    if family == getattr(socket, "AF_UNIX", None):
        return True
    host = address[0] if isinstance(address, tuple) else address
    if host in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(str(host)).is_loopback
    except ValueError:  # a host name: looking it up is already the network
        return False


def _is_address(host: object) -> bool:
    try:
        ipaddress.ip_address(str(host))
    except ValueError:
        return False
    return True


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every connection that would leave the machine, and every look-up of a host name, raises."""

    def guarded(name: str):
        original = getattr(socket.socket, name)

        def connect(self: socket.socket, address: object):
            if not _is_loopback(self.family, address):
                raise OSError(f"a test tried to reach the network: {address}")
            return original(self, address)

        return connect

    monkeypatch.setattr(socket.socket, "connect", guarded("connect"))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded("connect_ex"))
    look_up = socket.getaddrinfo

    def getaddrinfo(host, *rest, **named):
        if host is not None and not _is_loopback(socket.AF_INET, host) and not _is_address(host):
            raise OSError(f"a test tried to look up {host!r}")
        return look_up(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield


@pytest.fixture(scope="session")
def random_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Qwen2 and the tokenizer of the nano base, as any base on disk."""
    from tiny_runs import make_base

    return make_base(tmp_path_factory.mktemp("base") / "random-qwen2")
