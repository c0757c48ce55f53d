"""1 to 512 callers: Stoplog over HTTP and through the SDK, beside the peers and the raw echo."""

from __future__ import annotations

from typing import Final

from tests.benchmarks import cases_peers, cases_stoplog
from tests.benchmarks.bench_case import BenchCase
from tests.benchmarks.cases_grpc import grpc_calls
from tests.benchmarks.cases_stoplog import AUTHORIZE_DOOR, JSON_DOOR
from tests.benchmarks.context import BenchContext
from tests.benchmarks.echo import PARTITIONS
from tests.benchmarks.peers.environment import PeerMissing, peers_python
from tests.benchmarks.peers.servers import grpc_floor, limits_app, throttlecrab
from tests.benchmarks.plan import CALLERS, CLIENT_COUNT, DOOR_CALLERS

STAGE = cases_peers.STAGE
TOKEN_CALLERS: Final = (32, 128)


def run(bench: BenchContext) -> None:
    """Measure all cases in the same rounds."""
    peers = [*_echo(bench), *_peers_with_redis(bench), *_envoy_ratelimit(bench), *_throttlecrab(bench)]
    cases = [*peers, *_stoplog(bench), *_doors(bench)]
    bench.measure(sorted(cases, key=lambda case: case.callers))


def _stoplog(bench: BenchContext) -> list[BenchCase]:
    stoplog, plan, sdk = bench.stoplog, bench.plan, bench.sdk
    cases = [cases_stoplog.sdk(stoplog, plan, sdk, stage=STAGE, callers=n, key=f"sdk-{n}") for n in CALLERS]
    if bench.has_wrk("http", "HTTP, single checks and lists"):
        cases += [cases_stoplog.http(stoplog, plan, stage=STAGE, callers=n, key=f"http-{n}") for n in CALLERS]
        cases += [_with_token(bench, n) for n in TOKEN_CALLERS]
        cases += [_lists(bench, cases_stoplog.LIST_CONNECTIONS, "http-list")]
        cases += [_lists(bench, n, f"http-list-{n}") for n in CALLERS if plan.full]
    cases += [_published(bench, n, f"published-{n}", CLIENT_COUNT) for n in CALLERS if plan.full]
    return [*cases, _published(bench, 0, "published", 8_000)]


def _with_token(bench: BenchContext, callers: int) -> BenchCase:
    return cases_stoplog.http(
        bench.stoplog,
        bench.plan,
        stage=STAGE,
        callers=callers,
        key=f"http-{callers}-token",
        what="HTTP, single checks with a token",
        token=bench.stoplog.token,
    )


def _lists(bench: BenchContext, callers: int, key: str) -> BenchCase:
    what, size = f"HTTP, lists of {cases_stoplog.LIST_SIZE}", cases_stoplog.LIST_SIZE
    return cases_stoplog.http(
        bench.stoplog, bench.plan, stage=STAGE, callers=callers, key=key, what=what, size=size
    )


def _published(bench: BenchContext, callers: int, key: str, clients: int) -> BenchCase:
    """Return the case of *callers* that publish one check each per turn; 0 publishes batches of 100."""
    what = "SDK, published without reply" + ("" if callers else f", batches of 100, {clients:,} clients")
    return cases_stoplog.published(
        bench.stoplog,
        bench.plan,
        bench.sdk,
        stage=STAGE,
        key=key,
        what=what,
        clients=clients,
        callers=callers,
    )


def _echo(bench: BenchContext) -> list[BenchCase]:
    echo = bench.echo
    return [
        cases_peers.echo(*echo, bench.plan, key="echo-1", partitions=1, size=1),
        cases_peers.echo(*echo, bench.plan, key="echo-100", partitions=PARTITIONS, size=100),
    ]


def _peers_with_redis(bench: BenchContext) -> list[BenchCase]:
    try:
        python = peers_python()
        server = bench.redis
        app = bench.stack.enter_context(limits_app(bench.folder, server.port))
    except PeerMissing as exc:
        bench.skip("redis", "peers: Redis script; limits + FastAPI + Redis", str(exc))
        return []
    command = [python, "-m", "tests.benchmarks.peers.redis_script", str(server.port)]
    script = bench.stack.enter_context(bench.loader("redis-script", command))
    cases = [cases_peers.redis_script(script, [server.pid], bench.plan, size) for size in (1, 50)]
    if bench.has_wrk("limits", "peer: limits + FastAPI + Redis"):
        pids = [app.pid, server.pid]
        connections = bench.plan.peer_connections
        cases += [cases_peers.limits_http(app.port, pids, bench.plan, n) for n in connections]
    return cases


def _envoy_ratelimit(bench: BenchContext) -> list[BenchCase]:
    try:
        server = bench.ratelimit
    except PeerMissing as exc:
        bench.skip("ratelimit", "peer: envoyproxy/ratelimit + Redis", str(exc))
        return []
    pids, plan = [server.pid, bench.redis.pid], bench.plan
    cases = [
        grpc_calls(
            bench.grpc,
            plan,
            address=f"127.0.0.1:{server.grpc_port}",
            parts={"server": pids},
            callers=n,
            key=f"ratelimit-grpc-{n}",
            what="peer: envoyproxy/ratelimit + Redis, gRPC",
        )
        for n in DOOR_CALLERS
    ]
    if bench.has_wrk("ratelimit", "peer: envoyproxy/ratelimit + Redis, POST /json"):
        cases += [cases_peers.envoy_ratelimit_http(server.port, pids, plan, n) for n in plan.peer_connections]
    return cases


def _doors(bench: BenchContext) -> list[BenchCase]:
    """Return the cases of the doors that proxies use, and of a gRPC server that only answers."""
    stoplog, plan = bench.stoplog, bench.plan
    floor = bench.stack.enter_context(grpc_floor(bench.folder))
    cases = []
    for n in DOOR_CALLERS:
        address, parts = f"127.0.0.1:{floor.port}", {"server": [floor.pid]}
        what = "floor: grpc.aio, constant answer"
        floor_key = f"grpc-floor-{n}"
        cases.append(
            grpc_calls(bench.grpc, plan, address=address, parts=parts, callers=n, key=floor_key, what=what)
        )
        address, what = stoplog.grpc_address, "gRPC, ShouldRateLimit"
        cases.append(
            grpc_calls(
                bench.grpc,
                plan,
                address=address,
                parts=stoplog.pids(),
                callers=n,
                key=f"grpc-{n}",
                what=what,
            )
        )
    if bench.has_wrk("doors", "HTTP, GET /v1/authorize and POST /json"):
        for name, door in (("authorize", AUTHORIZE_DOOR), ("json", JSON_DOOR)):
            cases += [
                cases_stoplog.http(
                    stoplog,
                    plan,
                    stage=STAGE,
                    callers=n,
                    key=f"{name}-{n}",
                    what=f"HTTP, {door.method} {door.path}",
                    door=door,
                )
                for n in DOOR_CALLERS
            ]
    return cases


def _throttlecrab(bench: BenchContext) -> list[BenchCase]:
    if not bench.has_wrk("throttlecrab", "peer: throttlecrab"):
        return []
    try:
        server = bench.stack.enter_context(throttlecrab(bench.folder))
    except PeerMissing as exc:
        bench.skip("throttlecrab", "peer: throttlecrab", str(exc))
        return []
    connections = bench.plan.peer_connections
    return [cases_peers.throttlecrab_http(server.port, [server.pid], bench.plan, n) for n in connections]
