"""A real S3 server on this machine (moto's), and `dpr` with work directories on it."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import quick

ROOT = Path(__file__).resolve().parents[1]
BUCKET = "bucket"
SERVER = """
import sys
from moto.server import main

main(["-H", sys.argv[1], "-p", sys.argv[2]])
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def server(folder: Path, host: str = "127.0.0.1", shown: str = "") -> Iterator[dict[str, str]]:
    """Runs the server; yields the environment in which `dpr` finds it."""
    pytest.importorskip("moto.server", reason="needs moto[server]")
    pytest.importorskip("s3fs")
    port = free_port()
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, host, str(port)], stdout=log, stderr=log
        )
    environment = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{shown or host}:{port}",
        "DPR_CACHE": str(folder / "cache"),
    }
    try:
        end_s = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection((shown or host, port)):
                break
            assert time.monotonic() < end_s and process.poll() is None
            time.sleep(0.1)
        files(environment).call_s3("create_bucket", Bucket=BUCKET)
        yield environment
    finally:
        process.kill()
        process.wait()


def files(environment: dict[str, str]) -> Any:
    """A file system over the server, for a test's own looks and writes."""
    import s3fs

    return s3fs.S3FileSystem(
        key=environment["AWS_ACCESS_KEY_ID"],
        secret=environment["AWS_SECRET_ACCESS_KEY"],
        client_kwargs={
            "endpoint_url": environment["AWS_ENDPOINT_URL"],
            "region_name": "us-east-1",
        },
        use_listings_cache=False,
        skip_instance_cache=True,
    )


def dpr(
    environment: dict[str, str], *args: str, code: str = "from dpr_jax.cli import main; main()"
) -> subprocess.CompletedProcess[str]:
    """Runs `dpr` in one new process of two simulated devices."""
    flags = f"{quick.FLAGS} --xla_force_host_platform_device_count=2"
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        check=False,
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
