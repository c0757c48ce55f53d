"""A gateway as one process or several on one port."""
