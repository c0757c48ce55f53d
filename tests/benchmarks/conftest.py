"""Exclude the modules of the peers' environment from doctests: they cannot be imported here."""

collect_ignore = [
    "plot.py",
    "peers/fastapi_limiter_app.py",
    "peers/limits_app.py",
    "peers/limits_threads.py",
    "peers/redis_script.py",
    "peers/slowapi_app.py",
]
