"""Exclude the modules of the peers' environment from doctests: they cannot be imported here."""

collect_ignore = ["plot.py", "peers/limits_app.py", "peers/redis_script.py"]
