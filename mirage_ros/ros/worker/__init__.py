"""The inference worker: a process of its own."""
