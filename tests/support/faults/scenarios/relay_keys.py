"""All workers get a new relay key, while limits are changed. The first one switches the signatures on."""

from __future__ import annotations

from tests.support.faults.relay_rotation import id_of, rotation
from tests.support.faults.rig import HARMLESS_S, Rig
from tests.support.system import eventually


def workers_get_new_relay_key(rig: Rig) -> None:
    """Restart the workers with a further key. They keep it, and all earlier ones, for all later faults.

    The oracle finds updates that are refused, forged or missing.
    """
    steps = rotation(rig.relay_keys)
    with rig.fault(
        "all workers: a new relay key, one after the other", episodes=3 * len(steps), most_s=HARMLESS_S
    ) as fault:
        for keys in steps:
            rig.set_relay_keys(keys)
            for worker in rig.system.workers:
                with rig.joining(worker):
                    worker.restart(relay_keys=",".join(keys))
                rig.await_takeover(fault)
        signer = id_of(rig.relay_keys[0])
        eventually(
            f"the key {signer} signs in all partitions",
            lambda: rig.oracle.signers() == {signer},
            on_failure=rig.system.logs,
        )
