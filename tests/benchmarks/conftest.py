"""What runs in the peers' environment cannot be imported for its doctests here."""

collect_ignore = ["plot.py", "peers/limits_app.py", "peers/redis_script.py"]
