"""tests/releases.txt names commits that were releases, and CHANGELOG.md describes each of them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

from tests.support.broker import CHECKOUT


def releases() -> Iterator[tuple[str, str]]:
    """Yield version and commit id of each release."""
    for line in (CHECKOUT / "tests" / "releases.txt").read_text().splitlines():
        if not line.startswith("#"):
            version, commit = line.split()
            yield version, commit


def git(*args: str) -> str | None:
    """Return what git prints; ``None`` if it fails, as in a checkout without history."""
    try:
        done = subprocess.run(["git", *args], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout


def test_releases_have_a_full_commit_id_and_a_section_in_the_changelog() -> None:
    changelog = (CHECKOUT / "CHANGELOG.md").read_text()
    assert list(releases())
    for version, commit in releases():
        assert re.fullmatch(r"[0-9a-f]{40}", commit), version
        assert re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE), (
            version
        )


def test_release_commit_states_its_version() -> None:
    for version, commit in releases():
        source = git("show", f"{commit}:stoplog/__init__.py")
        if source is not None:  # a shallow clone lacks old commits
            assert f'__version__ = "{version}"' in source
