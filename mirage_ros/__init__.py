"""mirage_ros: a robot simulator whose world is generated."""

__version__ = "0.1.0"
