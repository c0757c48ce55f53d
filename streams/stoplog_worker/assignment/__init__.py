"""The partitions of this worker, and the takeover of a partition.

A takeover passes these modules in this order; docs/design/rebalancing.md shows it as a timeline:

=============================  ==================================================================
module                         what happens there
=============================  ==================================================================
``faust_app``                  Faust, a member of the consumer group, begins a rebalance.
``takeover``, old owner        It has a last checkpoint written (``consumer/revocation``).
``faust_tables``               Faust passes on the new assignment.
``takeover``, new owner        It gives the partition's store to the restorer.
``restore/restorer``           The store reads its changelogs to their end.
``takeover``, new owner        It gives the store to ``consumer/consumer_thread``, which decides.
``takeover``, old owner        It closes its store when the new owner's heartbeat arrives.
=============================  ==================================================================

``partition/phase`` lists what a worker may do with a partition meanwhile. ``static_membership`` lets a
restarted worker keep its partitions, and extends the lease.
"""
