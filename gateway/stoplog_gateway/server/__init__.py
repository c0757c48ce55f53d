"""The gateway as a server: one process, or several on one port."""
