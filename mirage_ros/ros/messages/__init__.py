"""Messages from and to the project's own values."""
