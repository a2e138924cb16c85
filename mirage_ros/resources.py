"""Where the files that come with the package lie: config, seeds, launch files."""

from __future__ import annotations

from pathlib import Path

from mirage_ros.core.errors import MirageError

PACKAGE = Path(__file__).parent


def share_path(*parts: str) -> Path:
    """A shipped file or folder, such as share_path("config", "mirage.yaml").

    In a checkout it lies beside the package. colcon and pip both install it to
    share/mirage_ros of the prefix that holds the package.

    Raises:
        MirageError: nothing of that name is installed.
    """
    roots = _roots(PACKAGE)
    for root in roots:
        path = root.joinpath(*parts)
        if path.exists():
            return path
    places = " or ".join(str(root) for root in roots) or str(PACKAGE)
    raise MirageError(
        f"'{'/'.join(parts)}' does not come with this mirage_ros (looked in {places}); "
        "give a path to a file of your own or install the package again."
    )


def _roots(package: Path) -> list[Path]:
    """Folders that may hold config/ and launch/, the checkout's root first."""
    checkout = [package.parent] if (package.parent / "package.xml").is_file() else []
    shared = (parent / "share" / "mirage_ros" for parent in package.parents)
    return checkout + [path for path in shared if path.is_dir()]
