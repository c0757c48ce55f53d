"""Split the partitions: ``stoplog topics grow``.

Clients are hashed over the number of partitions. If the number becomes a multiple of what it was, each client
either stays in its partition p or moves to one of p + N, p + 2N, … So growing splits partitions and never
mixes them.

Gateways and workers pause meanwhile. The steps, each of which can be repeated:

1. Gateways publish nothing any more, then workers stop (:mod:`stoplog_worker.growth.step`). All lanes have
   decided everything in ``checks``: their markers are at its end.
2. The topics get new partitions.
3. The limits that are in force in p are written to ``limit-updates`` of each partition that is split off
   (:mod:`stoplog_worker.growth.limits`).
4. Each lane's states and policies of the clients that move are written to its changelogs
   (:mod:`stoplog_worker.growth.states`). A new partition's marker comes last.
5. The new number is recorded. It is in force from then on. Nothing before has changed an old partition.
6. The updates of clients that moved are overwritten in ``limit-updates`` of their old partitions.
"""
