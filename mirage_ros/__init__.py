"""mirage_ros: a robot simulator whose world is generated."""

from pathlib import Path
from pkgutil import extend_path

__version__ = "0.1.0"

# colcon installs the generated messages (mirage_ros.msg) into this folder; a checkout or a pip
# install finds them elsewhere on the path, where `make setup` put them.
if not Path(__file__).with_name("msg").is_dir():
    __path__ = extend_path(__path__, __name__)
