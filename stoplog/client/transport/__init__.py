"""The connection of one gateway, or one program that uses the SDK, to Kafka.

=========================  =====================================================================
module                     one thing each
=========================  =====================================================================
``kafka_transport``        what the engine uses: sends records, and owns the threads
``listener``               what the transport reports to the engine
``producer``               publishes records, and replaces a producer that can no longer be used
``reply_consumer``         reads replies and heartbeats
``broker_monitor``         requests metadata from the broker
``broker_view``            the broker's answer
``update_reader``          reads stored limits for an administrator
=========================  =====================================================================
"""
