"""The client: a check, from the call to its answer.

A check passes these modules in this order:

=====================  ===============================================================================
module                 what happens there
=====================  ===============================================================================
``limiter``            The program calls ``Limiter``. (``blocking`` is the same for threads.)
``batcher``            A lease or the deny cache may answer at once; else the check goes to its partition.
``partition_queue``    The check joins a batch, which waits for the batch before it.
``batch_sender``       The batch becomes a record.
``transport``          Kafka: the record goes out, and the reply comes in.
``pending_batch``      The reply resolves the futures of the callers.
=====================  ===============================================================================

``fail_open`` states the rule for checks without a timely reply. ``circuit_breaker`` and ``degraded_mode``
carry it out for one partition and report it for the whole gateway. ``engine`` connects all parts.
"""
