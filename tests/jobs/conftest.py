"""One Ray cluster of several nodes on this machine, with token authentication, for the tests."""

from __future__ import annotations

import os
import secrets
import socket
import warnings
from collections.abc import Iterator

import pytest

# Ray reads these when it is imported, so they are set before any test module does
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def ray_nodes() -> Iterator[object]:
    """A head without CPUs and two nodes of two; this process is connected to it."""
    import ray
    from ray.cluster_utils import Cluster

    from jobs import cluster as jobs_cluster

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray leaves sockets and deprecated calls behind

        def small() -> dict[str, int]:
            # agents of nodes on one machine would share one default port
            return {"object_store_memory": 80 * 2**20, "dashboard_agent_listen_port": free_port()}

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
