"""`stoplog up`: start, stop, restarts, and one line for each reason why it cannot run."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from stoplog_gateway.local.kafka_jars import KAFKA_VERSION
from stoplog_gateway.local.log_file import SHOWN_LEVELS
from stoplog_gateway.ports import free_port, is_free

from stoplog.topics import DEFAULT_FILE
from tests.support.broker import home_with_jars
from tests.support.certificates import Certificates
from tests.support.cpu import own_cpu_seconds
from tests.support.system import eventually
from tests.support.terminal import CTRL_C, terminal
from tests.support.up import Running, environment, stoplog, stoplog_up


def check(running: Running, client: str, cost: int = 1) -> dict[str, Any]:
    body = {"client_id": client, "cost": cost}
    answer = httpx.post(f"{running.url}/v1/check", json=body, timeout=10).raise_for_status().json()
    assert isinstance(answer, dict)
    return answer


def readable_by_others(home: Path) -> list[Path]:
    """Return what the group and others have permissions for, apart from Kafka's jars, which tests share."""
    paths = [home, *(path for path in home.rglob("*") if not path.is_symlink())]
    return [path for path in paths if stat.S_IMODE(path.stat().st_mode) & 0o077]


def test_up_after_a_stop_keeps_counts_and_limits_and_starts_as_quickly(tmp_path: Path) -> None:
    env = environment(tmp_path)
    started = time.monotonic()
    with stoplog_up(tmp_path, env=env) as running:
        first_s = time.monotonic() - started
        assert running.printed[-1] == f"stoplog is ready: {running.url}"
        token_file = tmp_path / "token"
        assert [path.stat().st_mode & 0o777 for path in (token_file, tmp_path / "tokens")] == [0o600] * 2
        token = token_file.read_text()
        refused = httpx.put(f"{running.url}/v1/limits/alice", json={"limits": ["5/hour"]}, timeout=10)
        assert refused.status_code == 401
        # The command finds the token in the data folder.
        done = stoplog("limits", "set", "alice", "5/hour", env={**env, "STOPLOG_URL": running.url})
        assert (done.returncode, done.stdout) == (0, "client alice: 5/hour\n"), done.stderr
        answers = [check(running, "alice") for _ in range(3)]
        assert [answer["remaining"] for answer in answers] == [4, 3, 2]
        assert not any(answer["degraded"] for answer in answers)
        children = running.children()
        assert readable_by_others(tmp_path) == []

        assert running.stop() == 0
    assert [pid for pid in children if psutil.pid_exists(pid)] == []

    # As an earlier release left them.
    for path in (tmp_path, tmp_path / "logs", tmp_path / "worker-1"):
        path.chmod(0o755)
    (tmp_path / "logs" / "worker-1.log").chmod(0o644)
    started = time.monotonic()
    with stoplog_up(tmp_path, env=env) as running:
        told = f"{tmp_path} was open to other users (4 of its files and folders): it is private from now on"
        assert told in running.printed
        assert readable_by_others(tmp_path) == []
        assert token_file.read_text() == token
        # 10 s on an idle machine. The first start has more to do, and shows how busy this machine is.
        assert time.monotonic() - started < max(15, 2 * first_s)
        answers = [check(running, "alice") for _ in range(3)]
        assert [(answer["allowed"], answer["remaining"]) for answer in answers] == [
            (True, 1),
            (True, 0),
            (False, 0),
        ]
        assert running.stop(signal.SIGTERM) == 0


def checks_counted(page: str) -> dict[str, float]:
    """Return the counters of checks in a page of metrics that are not 0, by name."""
    counted = r"(stoplog(?:_worker)?_(?:checks|reservations|batch)\w*(?:_total|_count)(?:{.*})?) (\S+)"
    samples = re.findall(rf"^{counted}$", page, re.MULTILINE)
    assert len(samples) > 3, page
    return {name: float(value) for name, value in samples if float(value)}


def test_up_with_64_partitions_starts_without_warnings_and_counts_no_checks(tmp_path: Path) -> None:
    topics = tmp_path / "topics.yaml"
    topics.write_text(re.sub(r"partitions: 4\n", "partitions: 64\n", DEFAULT_FILE.read_text()))
    metrics = free_port()
    env = environment(
        home_with_jars(tmp_path / "home"),
        STOPLOG_TOPICS=str(topics),
        STOPLOG_METRICS_PORT=str(metrics),
        STOPLOG_DEADLINE_MS="250",  # the default; the worker takes longer than three of these
    )
    with stoplog_up(tmp_path / "home", env=env) as running:
        urls = (f"{running.url}/metrics", f"http://127.0.0.1:{metrics}/metrics")
        pages = [
            httpx.get(url, headers=running.authorization, timeout=10, trust_env=False).text for url in urls
        ]
        logs = {path.name: path.read_text() for path in (tmp_path / "home" / "logs").glob("*-1.log")}
    assert [checks_counted(page) for page in pages] == [{}, {}]
    assert sorted(logs) == ["gateway-1.log", "worker-1.log"]
    # The broker of a busy machine may acknowledge late.
    warnings = [line for log in logs.values() for line in warnings_in(log) if "Message timed out" not in line]
    assert not warnings


def partitions_of(running: Running) -> int:
    """Return the number of partitions over which the gateway hashes clients."""
    status = httpx.get(f"{running.url}/v1/status", headers=running.authorization, timeout=10).json()
    return int(status["partitions"])


def test_up_begins_with_a_partition_for_each_worker_and_later_keeps_the_number(tmp_path: Path) -> None:
    env = environment(home_with_jars(tmp_path))
    for options in (["--workers", "2"], []):
        with stoplog_up(tmp_path, *options, env=env) as running:
            assert partitions_of(running) == 2
            assert not check(running, "alice")["degraded"]
            logs = {path.name: path.read_text() for path in (tmp_path / "logs").glob("*-1.log")}
            assert {name: warnings_in(log) for name, log in logs.items()} == {name: [] for name in logs}
            assert running.stop() == 0


def test_up_on_data_with_the_former_number_of_partitions_keeps_it(tmp_path: Path) -> None:
    topics = tmp_path / "topics.yaml"  # its numbers are those with which earlier versions began
    topics.write_text(DEFAULT_FILE.read_text())
    env = environment(home_with_jars(tmp_path / "home"), STOPLOG_DEFAULT_LIMITS="5/hour")
    with stoplog_up(tmp_path / "home", env={**env, "STOPLOG_TOPICS": str(topics)}) as running:
        assert check(running, "alice")["remaining"] == 4
        assert running.stop() == 0
    with stoplog_up(tmp_path / "home", env=env) as running:
        assert partitions_of(running) == 4
        assert check(running, "alice")["remaining"] == 3
        log = (tmp_path / "home" / "logs" / "gateway-1.log").read_text()
        assert warnings_in(log) == []


def test_up_shows_requests_that_work_and_refuses_a_second_one(tmp_path: Path) -> None:
    with stoplog_up(tmp_path) as running:
        assert running.process.stdout is not None
        put, post = running.process.stdout.readline(), running.process.stdout.readline()
        assert put.strip() == (
            f"stoplog limits set alice 5/minute --url {running.url} --token-file {tmp_path / 'token'}"
        )
        assert post.strip().startswith(f"curl {running.url}/v1/check -H 'Content-Type: application/json'")
        assert post.strip().endswith("""-d '{"client_id": "alice"}'""")

        second = stoplog("up", env=environment(tmp_path))
        assert second.returncode == 1
        assert second.stderr.count("\n") == 1
        assert (
            f"already running on {tmp_path} (process {running.process.pid}, {running.url})" in second.stderr
        )
        assert not check(running, "alice")["degraded"]

        gateway, worker, _ = children = running.children()
        os.kill(worker, signal.SIGSTOP)  # a stopped process does not end by itself
        running.process.send_signal(signal.SIGINT)
        running.wait_for("stopping ... (press Ctrl-C again to stop at once)")
        eventually("the gateway has ended", lambda: not psutil.pid_exists(gateway))
        assert running.stop() == 0
    assert [pid for pid in children if psutil.pid_exists(pid)] == []


def has_made_checkpoint(metrics_port: int) -> bool:
    """Return whether the worker with this port of metrics has written a checkpoint."""
    page = httpx.get(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10, trust_env=False).text
    counts = re.findall(r"^stoplog_worker_flush_seconds_count(?:\{.*\})? (\S+)", page, re.MULTILINE)
    return any(float(count) for count in counts)


def test_up_in_a_terminal_shows_steps_and_ready_lines_and_nothing_else(tmp_path: Path) -> None:
    metrics = free_port()
    env = environment(home_with_jars(tmp_path), STOPLOG_METRICS_PORT=str(metrics))
    url = f"http://127.0.0.1:{env['STOPLOG_PORT']}"
    with terminal("up", env=env) as tty:
        assert "\x1b[2K" in tty.wait_for('{"client_id": "alice"}')  # steps were shown and erased
        body = {"client_id": "alice"}
        assert not httpx.post(f"{url}/v1/check", json=body, timeout=10).raise_for_status().json()["degraded"]
        eventually("the worker has made a checkpoint", lambda: has_made_checkpoint(metrics))
        for name in ("gateway-1", "worker-1"):  # a line behind all that it has logged
            with (tmp_path / "logs" / f"{name}.log").open("a") as log:
                log.write(f"now WARNING {name} comes last\n")
        marks = [f"{name} | now WARNING {name} comes last" for name in ("gateway-1", "worker-1")]
        tty.wait_for(*marks)
        tty.press(CTRL_C)
        tty.wait_for("stopping ...")
        assert tty.process.wait(60) == 0
        *shown, put, post, first, second, stopping = tty.lines()
    assert sorted([first, second]) == marks
    assert shown == [
        f"starting Apache Kafka {KAFKA_VERSION} ...",
        "starting worker and gateway ...",
        f"stoplog is ready: http://127.0.0.1:{env['STOPLOG_PORT']}",
    ]
    assert put.startswith("  stoplog limits set alice 5/minute --url ")
    assert post.startswith("  curl http")
    assert stopping.removeprefix("^C") == "stopping ... (press Ctrl-C again to stop at once)"


def test_up_with_two_workers_and_two_gateways_counts_as_one(tmp_path: Path) -> None:
    envoy = free_port()
    env = environment(tmp_path, STOPLOG_ENVOY=f"127.0.0.1:{envoy}")  # for the first gateway
    with stoplog_up(tmp_path, "--workers", "2", "--gateways", "2", env=env) as running:
        assert not is_free(envoy)
        port = int(running.env["STOPLOG_PORT"])
        urls = [running.url, f"http://127.0.0.1:{port + 1}"]
        answers = [
            httpx.post(f"{urls[i % 2]}/v1/check", json={"client_id": "bob"}, timeout=10).json()
            for i in range(6)
        ]
        assert [answer["remaining"] for answer in answers] == [99, 98, 97, 96, 95, 94]

        def running_partitions() -> list[list[str]]:
            headers = running.authorization
            status = httpx.get(f"{running.url}/v1/status", headers=headers, timeout=10).json()
            return [
                [number for number, held in node["partitions"].items() if held["state"] == "running"]
                for node in status["nodes"]
                if node["role"] == "worker"
            ]

        # One worker is enough to answer all checks. The other may join a moment later.
        eventually(
            "each worker has half", lambda: [len(numbers) for numbers in running_partitions()] == [1, 1]
        )
        assert sorted(chain(*running_partitions())) == ["0", "1"]

        # One command makes the partitions grow. All processes go on.
        children = running.children()
        kafka = f"127.0.0.1:{env['STOPLOG_BROKER_PORT']}"
        grown = stoplog("topics", "grow", "8", "--json", env=running.env | {"STOPLOG_KAFKA": kafka})
        assert grown.returncode == 0, grown.stderr
        report = json.loads(grown.stdout)
        assert (report["after"], report["nodes"], report["uncounted"]) == (8, 4, 0)
        eventually("the workers have all partitions", lambda: len(set(chain(*running_partitions()))) == 8)
        for number, url in enumerate(urls):

            def answer(url: str = url) -> dict[str, Any]:
                found: dict[str, Any] = httpx.post(
                    f"{url}/v1/check", json={"client_id": "bob", "cost": 0}, timeout=10
                ).json()
                return found

            eventually(f"gateway {number} answers", lambda: not answer()["degraded"])
            assert answer()["remaining"] == 94
        assert running.children() == children
        assert running.stop() == 0


def test_up_on_a_new_data_folder_gives_hot_clients_leases_without_any_command(tmp_path: Path) -> None:
    with stoplog_up(tmp_path) as running:

        def hits() -> float:
            page = httpx.get(f"{running.url}/metrics", headers=running.authorization, timeout=10).text
            [found] = re.findall(r"^stoplog_lease_hits_total (\S+)", page, re.MULTILINE)
            return float(found)

        numbers = count()

        def leased() -> bool:
            """Make a new client hot, under the built-in limits."""
            client = f"hot-{next(numbers)}"
            remaining = [check(running, client)["remaining"] for _ in range(40)]
            assert remaining == list(range(99, 59, -1))
            return hits() > 0

        eventually("a lease answers a hot client", leased)
        assert running.stop() == 0


def test_up_starts_killed_processes_again(tmp_path: Path) -> None:
    with stoplog_up(tmp_path) as running:
        assert check(running, "carol")["remaining"] == 99
        gateway, worker, broker = running.children()
        up = psutil.Process(running.process.pid)
        descriptors = up.num_fds()

        os.kill(gateway, signal.SIGKILL)
        running.wait_for("gateway-1 ended (status -9)")
        os.kill(worker, signal.SIGKILL)
        running.wait_for("worker-1 ended (status -9)")
        os.kill(broker, signal.SIGKILL)
        running.wait_for("broker ended (status -9)")

        assert await_counted(running, "carol")["remaining"] == 98
        assert set(running.children()).isdisjoint({broker, worker, gateway})
        assert up.num_fds() <= descriptors
        assert psutil.STATUS_ZOMBIE not in {child.status() for child in up.children()}


def await_counted(running: Running, client: str) -> dict[str, Any]:
    """Send checks of cost 0 until workers answer again, then one of cost 1."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if not check(running, client, cost=0)["degraded"]:
                return check(running, client)
        except httpx.HTTPError:
            continue
    raise AssertionError("no check was answered again in 60 s")


def test_up_without_a_startable_broker_and_worker_keeps_its_gateways(tmp_path: Path) -> None:
    with stoplog_up(tmp_path) as running:
        assert not check(running, "erin")["degraded"]
        gateway, worker, broker = running.children()

        os.kill(worker, signal.SIGKILL)
        with hold_lock(tmp_path / "worker-1" / "lock"):  # the next worker ends with status 78
            running.wait_for("worker-1 cannot run as it is (status 78)")
            running.wait_for("own STOPLOG_INSTANCE_ID")
            assert check(running, "erin")["allowed"]

        os.kill(broker, signal.SIGKILL)
        port = int(running.env["STOPLOG_BROKER_PORT"])
        with hold_port(port):
            running.wait_for(f"broker could not be started (port {port} is taken: set STOPLOG_BROKER_PORT")
            for _ in range(3):
                answer = check(running, "erin")
                assert (answer["allowed"], answer["degraded"]) == (True, True)
            assert running.children()[0] == gateway
            assert psutil.pid_exists(gateway)
            assert running.stop() == 0  # while the broker waits for its next start
    assert not psutil.pid_exists(gateway)
    [stopped] = [line for line in running.printed if "stopped while degraded for " in line]
    assert stopped.startswith("gateway-1 | ")
    assert stopped.endswith("checks failed open, 3 could not be published and are not counted")


def test_up_whose_broker_does_not_come_back_goes_on_at_little_cost(tmp_path: Path) -> None:
    with stoplog_up(tmp_path) as running:
        gateway, worker, broker = running.children()
        assert await_counted(running, "frank")["remaining"] == 99
        processes = {"gateway-1": gateway, "worker-1": worker, "stoplog up": running.process.pid}
        idle = cpu_shares(processes)
        os.kill(broker, signal.SIGKILL)
        with hold_lock(tmp_path / "kafka" / "lock"):  # nothing can listen on the broker's port
            running.wait_for("broker could not be started")
            assert check(running, "frank")["degraded"]
            alone = cpu_shares(processes)
            # Reconnecting without delays took 9 to 12 % of a core on a machine where 2 % are idle.
            for name, share in alone.items():
                assert share < 2.5 * idle[name] + 0.01, (name, idle, alone)
        eventually("the broker is started again", lambda: running.children()[2] not in (None, broker))
        stopped = psutil.Process(running.children()[2])
        stopped.suspend()  # it never becomes ready
        try:
            os.kill(worker, signal.SIGKILL)
            running.wait_for("worker-1 ended (status -9)")
            eventually("the worker is started again", lambda: running.children()[1] != worker)
            answer = check(running, "frank")
            assert (answer["allowed"], answer["degraded"]) == (True, True)
            assert running.children()[0] == gateway
        finally:
            stopped.resume()
        assert not await_counted(running, "frank")["degraded"]


def cpu_shares(processes: dict[str, int]) -> dict[str, float]:
    """Return the share of a core that each process takes during five seconds, without its children."""
    began = time.monotonic()
    before = {name: own_cpu_seconds(pid) for name, pid in processes.items()}
    time.sleep(5)
    took = time.monotonic() - began
    return {name: (own_cpu_seconds(pid) - before[name]) / took for name, pid in processes.items()}


def hold_port(port: int) -> socket.socket:
    """Return a socket that listens on *port* as soon as the killed broker has left it."""
    eventually("the broker has ended", lambda: is_free(port))
    return socket.create_server(("127.0.0.1", port))


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a worker within the block, from the end of the killed worker on."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_ups_started_at_once_share_no_port_and_a_killed_one_leaves_nothing(tmp_path: Path) -> None:
    metrics = free_port()
    homes = [home_with_jars(tmp_path / name) for name in ("one", "other")]
    envs = [environment(home, STOPLOG_METRICS_PORT=str(metrics)) for home in homes]
    with ExitStack() as stack:
        systems = [Running(home, env) for home, env in zip(homes, envs, strict=True)]
        for system in systems:
            stack.callback(system.end)
        for system in systems:
            system.wait_for("stoplog is ready")
        moved = [line for system in systems for line in system.printed if "has its metrics on port" in line]
        (line,) = moved
        assert f"because port {metrics} is taken: set STOPLOG_METRICS_PORT to a free one" in line
        for port in (metrics, int(line.partition("on port ")[2].partition(",")[0])):
            page = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10, trust_env=False)
            assert "stoplog_" in page.raise_for_status().text

        killed = systems[0]
        assert check(killed, "dave")["remaining"] == 99
        left = [psutil.Process(pid) for pid in killed.children()]
        killed.kill()
        _, alive = psutil.wait_procs(left, timeout=60)
        # The init of a container may not collect the status of an orphan.
        assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []

        again = Running(homes[0], envs[0])
        stack.callback(again.end)
        again.wait_for("stoplog is ready")
        assert check(again, "dave")["remaining"] == 98


@pytest.mark.parametrize("variable", ["STOPLOG_PORT", "STOPLOG_BROKER_PORT"])
def test_of_two_ups_that_start_at_once_with_one_port_the_other_ends_with_the_remedy(
    tmp_path: Path, variable: str
) -> None:
    port = str(free_port())
    homes = [home_with_jars(tmp_path / name) for name in ("one", "other")]
    with ExitStack() as stack:
        systems = [Running(home, environment(home, **{variable: port})) for home in homes]
        for system in systems:
            stack.callback(system.end)
        eventually("one has ended", lambda: any(system.process.poll() is not None for system in systems))
        loser, winner = sorted(systems, key=lambda system: system.process.poll() is None)
        printed, _ = loser.process.communicate(timeout=60)
        assert loser.process.returncode == 1
        assert f"port {port} is taken: set {variable}" in printed.splitlines()[-1]
        assert "starting worker and gateway" not in printed
        winner.wait_for("stoplog is ready")
        assert check(winner, "grace")["remaining"] == 99


@pytest.mark.needs("curl")
def test_up_with_tls_and_required_tokens_prints_requests_that_work(tmp_path: Path) -> None:
    files = Certificates(tmp_path)
    home = home_with_jars(tmp_path / "home of stoplog")  # the lines quote paths
    env = environment(
        home,
        STOPLOG_CHECK_TOKEN="required",
        STOPLOG_TLS_CERT_FILE=str(files.cert_file),
        STOPLOG_TLS_KEY_FILE=str(files.key_file),
        STOPLOG_TLS_CLIENT_CA_FILE=str(files.ca_file),
        STOPLOG_CA_FILE=str(files.ca_file),
    )
    refused = stoplog("up", env=env)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "set STOPLOG_CLIENT_CERT_FILE and STOPLOG_CLIENT_KEY_FILE" in refused.stderr

    env["STOPLOG_CLIENT_CERT_FILE"] = str(files.client_cert_file)
    env["STOPLOG_CLIENT_KEY_FILE"] = str(files.client_key_file)
    with stoplog_up(home, env=env) as running:
        assert running.printed[-1] == f"stoplog is ready: https://127.0.0.1:{env['STOPLOG_PORT']}"
        assert running.process.stdout is not None
        put, post = running.process.stdout.readline(), running.process.stdout.readline()
        assert in_another_terminal(put) == "client alice: 5/minute\n"
        answer = json.loads(in_another_terminal(post))
        assert (answer["allowed"], answer["remaining"], answer["degraded"]) == (True, 4, False)
        assert [line for name in ("gateway-1", "worker-1") for line in warnings_in(running.log(name))] == []


def in_another_terminal(line: str) -> str:
    """Run a command line without the settings of the system; return its output."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("STOPLOG_")}
    own["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), own["PATH"]])
    done = subprocess.run(
        ["sh", "-c", line], env=own, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, (line, done.stderr)
    return done.stdout


def warnings_in(log: str) -> list[str]:
    return [line for line in log.splitlines() if any(level in line for level in SHOWN_LEVELS)]


@pytest.mark.parametrize("variable", ["STOPLOG_PORT", "STOPLOG_BROKER_PORT"])
def test_up_with_a_taken_port_ends_with_the_remedy(tmp_path: Path, variable: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = stoplog("up", env=environment(home_with_jars(tmp_path), **{variable: str(port)}))

    assert ended.returncode == 1
    assert ended.stdout == ""
    problem = ended.stderr.splitlines()[-1]
    assert f"port {port} is taken: set {variable}" in problem
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"STOPLOG_PORT": "65535"}, "port 65536 is above the highest port"),
        ({"STOPLOG_HOST": "192.0.2.1"}, "STOPLOG_HOST=192.0.2.1 is not an address of this machine"),
        ({"STOPLOG_HOST": "nowhere.invalid"}, "STOPLOG_HOST=nowhere.invalid cannot be resolved"),
        ({"STOPLOG_METRICS_PORT": "99999"}, "STOPLOG_METRICS_PORT=99999 is not a port"),
    ],
)
def test_up_with_an_unusable_address_ends_with_one_line(
    tmp_path: Path, settings: dict[str, str], problem: str
) -> None:
    ended = stoplog("up", "--gateways", "2", env=environment(tmp_path, **settings))
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert problem in ended.stderr


def test_up_without_its_kafka_ends_with_one_line(tmp_path: Path) -> None:
    ended = stoplog("up", env=environment(tmp_path, STOPLOG_KAFKA="127.0.0.1:1"))
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "no Kafka answers at 127.0.0.1:1" in ended.stderr


def test_up_with_invalid_settings_ends_with_one_line(tmp_path: Path) -> None:
    ended = stoplog("up", env=environment(tmp_path, STOPLOG_DEADLINE_MS="soon"))
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "STOPLOG_DEADLINE_MS='soon'" in ended.stderr


def test_up_with_a_worker_that_cannot_run_shows_its_error(tmp_path: Path) -> None:
    ended = stoplog("up", env=environment(home_with_jars(tmp_path), STOPLOG_SESSION_TIMEOUT_MS="5"))
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "worker-1 cannot run" in ended.stderr
    assert "session_timeout_ms" in ended.stderr
    assert "Traceback" not in ended.stderr
