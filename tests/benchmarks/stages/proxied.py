"""nginx and Envoy in front of a constant upstream: without a limiter, with Stoplog, and with a peer."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import Any, Final

from stoplog_gateway.ports import free_port

from tests.benchmarks.bench_case import BenchCase
from tests.benchmarks.cases_stoplog import AUTHORIZE_DOOR, counts_of
from tests.benchmarks.context import BenchContext
from tests.benchmarks.cpu import Meter
from tests.benchmarks.load_http import drive
from tests.benchmarks.loader import LoadGeneratorFailed
from tests.benchmarks.peers.environment import PeerMissing
from tests.benchmarks.peers.proxy_servers import bench_envoy, bench_nginx
from tests.benchmarks.peers.servers import PeerServer
from tests.benchmarks.plan import CLIENT_COUNT, DISTRIBUTIONS
from tests.benchmarks.stoplog_system import LEASE_MAX_MS
from tests.support.system import Gateway

STAGE: Final = "proxies"
_CONNECTIONS: Final = 32
_ALLOWED: Final = "stoplog_checks_allowed_total"
_GRPC: Final = "envoy.yaml"
_AUTHZ: Final = "ext_authz.yaml"


def run(bench: BenchContext) -> None:
    """Measure all proxies in the same rounds, with a gateway of their own that has leases."""
    if not bench.has_wrk(STAGE, "nginx and Envoy in front of an upstream"):
        return
    system, folder, grpc_port = bench.stoplog.system, bench.folder, free_port()
    gateway = system.add_gateway(lease_max_ms=LEASE_MAX_MS, envoy=f"127.0.0.1:{grpc_port}")
    system.wait_ready()
    ours = bench.stoplog.pids(len(system.gateways) - 1)
    with ExitStack() as stack:
        cases = []

        def add(
            key: str, what: str, proxy: AbstractContextManager[PeerServer], parts: dict[str, list[int]]
        ) -> None:
            try:
                server = stack.enter_context(proxy)
            except PeerMissing as exc:
                bench.skip(key, what, str(exc))
                return
            with_leases = parts is ours
            for distribution, name in DISTRIBUTIONS.items():
                if with_leases or distribution == "zipf":
                    label = f"{what}, {name}, leases on" if with_leases else what
                    case_key = f"{key}-{distribution}" if with_leases else key
                    cases.append(
                        _case(
                            bench,
                            gateway,
                            server,
                            case_key,
                            label,
                            {"proxy": [server.pid], **parts},
                            distribution,
                        )
                    )

        add("nginx-none", "nginx, no limiter", bench_nginx(folder, "nginx-none", None), {})
        nginx = bench_nginx(folder, "nginx", gateway.port)
        add("nginx", "nginx, auth_request", nginx, ours)
        add("envoy-none", "Envoy, no limiter", bench_envoy(folder, "envoy-none", _GRPC, None), {})
        add(
            "envoy-authz",
            "Envoy, HTTP ext_authz",
            bench_envoy(folder, "envoy-authz", _AUTHZ, gateway.port),
            ours,
        )
        add(
            "envoy-grpc",
            "Envoy, rate limit service",
            bench_envoy(folder, "envoy-grpc", _GRPC, grpc_port),
            ours,
        )
        what = "peer: Envoy, envoyproxy/ratelimit + Redis"
        try:
            service = bench.ratelimit
        except PeerMissing as exc:
            bench.skip("envoy-ratelimit", what, str(exc))
        else:
            envoy = bench_envoy(folder, "envoy-ratelimit", _GRPC, service.grpc_port)
            add("envoy-ratelimit", what, envoy, {"server": [service.pid, bench.redis.pid]})
        bench.measure(cases)


def _case(
    bench: BenchContext,
    gateway: Gateway,
    proxy: PeerServer,
    key: str,
    what: str,
    parts: dict[str, list[int]],
    distribution: str,
) -> BenchCase:
    def load(meter: Meter, seed: int) -> dict[str, Any]:
        def drive_for(meter: Meter, seconds: int) -> dict[str, Any]:
            return drive(
                f"http://127.0.0.1:{proxy.port}/",
                meter,
                connections=_CONNECTIONS,
                seconds=seconds,
                seed=seed,
                clients=CLIENT_COUNT,
                distribution=distribution,
                check=AUTHORIZE_DOOR.check,
                method="GET",
            )

        if "gateway" in parts and distribution == "zipf":
            drive_for(Meter({}), bench.plan.lease_warmup_s)
        if "gateway" not in parts:
            return drive_for(meter, bench.plan.seconds)
        before, allowed = counts_of(gateway), gateway.metric(_ALLOWED)
        figures = drive_for(meter, bench.plan.seconds)
        counts = {field: count - before[field] for field, count in counts_of(gateway).items()}
        reached = gateway.metric(_ALLOWED) - allowed + sum(counts.values())
        if reached < figures["checks"]:
            # The proxies fail open, which is cheap.
            raise LoadGeneratorFailed(f"of {figures['checks']} requests, {reached:.0f} were checked")
        return {**figures, **counts}

    return BenchCase(key, STAGE, what, _CONNECTIONS, parts, load)
