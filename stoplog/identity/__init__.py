"""Client identity: one set of rules for all interfaces.

=====================  =====================================================================================
module                 contents
=====================  =====================================================================================
``addresses``          one form for each IP address, sets of networks, and the id of an address
``forwarding``         the client's address, behind proxies that are trusted
``header_text``        one decoding of header fields
``normalization``      the form in which ids are compared
``identity``           the settings of all of these, applied to one request
``identifiers``        ``client_address``, ``header`` and ``first_of`` for the ASGI middleware
=====================  =====================================================================================
"""

from stoplog.identity.identifiers import client_address, first_of, header

__all__ = ["client_address", "first_of", "header"]
