"""A server in operation: TLS, pings, metrics, a stop that answers who waits, robots that are slow."""

from __future__ import annotations

import re
import shutil
import signal
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from websockets.sync.client import connect

from prism_client import PolicyClient
from prism_client.msgpack_numpy import pack, unpack
from prism_policy.deploy.metrics import BUCKETS_S, Histogram
from prism_policy.deploy.server import tls_context
from prism_policy.errors import PrismError
from served_run import frame, served, stacked, write_run
from small_run import small_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("operation") / "run", small_config())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if not shutil.which("openssl"):
        pytest.skip("needs openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    command += f" -addext subjectAltName=IP:127.0.0.1 -keyout {folder / 'key.pem'} -out {folder / 'cert.pem'}"
    subprocess.run(command.split(), check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture(scope="module")
def secured(run: Path, certificate: tuple[Path, Path]) -> Iterator[tuple[str, str]]:
    """A server with TLS and a key, "k": its address, and the certificate to trust."""
    cert, key = certificate
    with served(run, "--tls-cert", str(cert), "--tls-key", str(key), key="k") as (url, _):
        yield url, str(cert)


def page(url: str, path: str, key: str = "", ca: str | None = None) -> str:
    request = urllib.request.Request(url.replace("ws", "http", 1) + path)
    if key:
        request.add_header("Authorization", f"Api-Key {key}")
    context = ssl.create_default_context(cafile=ca) if ca else None
    with urllib.request.urlopen(request, timeout=10, context=context) as answer:
        return answer.read().decode()


def value(text: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found, f"{name} in {text}"
    return float(found[1])


def test_metrics_say_what_happened(secured: tuple[str, str]) -> None:
    url, ca = secured
    with pytest.raises(urllib.error.HTTPError, match="401"):
        page(url, "/metrics", ca=ca)
    with PolicyClient(url, api_key="k", ca=ca) as client, PolicyClient(url, api_key="k", ca=ca) as other:
        for _ in range(3):
            client.infer(stacked(0, 1))
        with pytest.raises(PrismError):
            other.infer({"pose": 1})
        text = page(url, "/metrics", "k", ca)
    assert (value(text, "prism_answers_total"), value(text, "prism_questions_total")) == (3, 4)
    assert (value(text, "prism_refusals_total"), value(text, "prism_failures_total")) == (1, 0)
    assert (value(text, "prism_connections_total"), value(text, "prism_waiting")) == (2, 0)
    assert 1 <= value(text, "prism_robots") <= 2
    assert value(text, "prism_answer_seconds_count") == 3
    assert value(text, "prism_answer_seconds_sum") > 0
    assert re.search(r'prism_policy_info\{run="run",checkpoint="last",weights="[0-9a-f]{16}",', text)
    for line in text.splitlines():  # as the exposition format has it
        assert re.fullmatch(r"# (HELP|TYPE) prism_\w+ .+|prism_\w+(\{.*\})? -?[0-9.e+-]+", line), line


def test_over_tls_a_robot_that_knows_the_certificate_is_served(
    secured: tuple[str, str], certificate: tuple[Path, Path]
) -> None:
    (url, ca), (cert, key) = secured, certificate
    assert url.startswith("wss://")
    with PolicyClient(url, api_key="k", ca=ca) as client:
        assert client.infer(stacked(0, 1))["actions"].shape == (8, 7)
    with pytest.raises(PrismError, match=r"is not to be trusted .*; name the server's certificate with `ca`"):
        PolicyClient(url, api_key="k", connect_s=5)
    with pytest.raises(PrismError, match=r"no policy server|refuses"):
        PolicyClient(url.replace("wss", "ws"), api_key="k", connect_s=1)
    assert page(url, "/healthz", ca=ca) == "OK\n"
    with pytest.raises(PrismError, match="expected a certificate and its key"):
        tls_context(cert, cert)
    with pytest.raises(PrismError, match="expected a certificate and its key"):
        tls_context(cert.with_name("none"), key)


def test_histograms_count_each_bucket_with_those_below() -> None:
    histogram, rng = Histogram(), np.random.default_rng(0)
    durations = [*rng.uniform(0, 12, 200), *BUCKETS_S]
    for seconds in durations:
        histogram.add(seconds)
    lines = "\n".join(histogram.lines("x"))
    for end in BUCKETS_S:
        assert value(lines, f'x_bucket{{le="{end}"}}') == sum(d <= end for d in durations)
    assert value(lines, 'x_bucket{le="+Inf"}') == value(lines, "x_count") == len(durations)
    assert value(lines, "x_sum") == pytest.approx(sum(durations))


def test_stopped_by_sigterm_it_answers_who_waits_and_lets_the_others_go(run: Path) -> None:
    with served(run) as (url, process):
        idle, clients = PolicyClient(url), [PolicyClient(url) for _ in range(4)]
        answers: list[object] = []

        def ask(client: PolicyClient) -> None:
            for _ in range(1000):
                try:
                    answers.append(client.infer(stacked(0, 1))["actions"].shape)
                except PrismError as error:
                    answers.append(str(error))
                    return

        threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(20)
        out, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, "")
        shapes = [answer for answer in answers if answer == (8, 7)]
        assert int(re.search(r"Served (\d+) chunks", out)[1]) == len(shapes)  # type: ignore[index] # none was lost
        sentences = [answer for answer in answers if isinstance(answer, str)]
        assert len(sentences) == 4
        assert all("the server is stopping" in sentence for sentence in sentences), sentences
        with pytest.raises(PrismError, match="is gone"):
            idle.infer(stacked(0, 1))


@pytest.mark.slow
def test_who_sends_slowly_does_not_keep_another_waiting(run: Path) -> None:
    with served(run) as (url, _):
        message, stop = pack(stacked(0, 1)), threading.Event()

        def drip() -> Iterator[bytes]:
            for i in range(0, len(message), 100):
                if stop.wait(0.02):
                    return
                yield message[i : i + 100]

        def slow() -> None:
            with connect(url, compression=None) as connection:
                unpack(connection.recv())
                connection.send(drip())

        threads = [threading.Thread(target=slow, daemon=True) for _ in range(3)]
        with PolicyClient(url) as client:
            for _ in range(5):
                client.infer(stacked(0, 1))
            alone = client.latency_s(1.0)
            for thread in threads:
                thread.start()
            time.sleep(0.2)
            client.round_trips_s.clear()
            for _ in range(15):
                client.infer(stacked(0, 1))
            beside = client.latency_s(0.5)
        stop.set()
        for thread in threads:
            thread.join(5)
        assert alone
        assert beside
        assert beside < 3 * alone + 0.05


@pytest.mark.slow
def test_a_robot_that_is_gone_is_noticed_within_its_own_patience(run: Path) -> None:
    with served(run) as (url, _):
        patient, hasty = PolicyClient(url, answer_s=30), PolicyClient(url, answer_s=0.5)
        for client in (patient, hasty):
            client._connection.recv_events_exc = None
            client.infer(frame(0))
        assert value(page(url, "/metrics"), "prism_robots") == 2
        # A robot whose machine is off answers no ping; this one's socket stays open, and its thread reads no more.
        for client in (patient, hasty):
            client._connection.protocol.receive_data = lambda data: None  # type: ignore[method-assign]
        deadline = time.monotonic() + 8
        while value(page(url, "/metrics"), "prism_robots") > 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert value(page(url, "/metrics"), "prism_robots") == 1
