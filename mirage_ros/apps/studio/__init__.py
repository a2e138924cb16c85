"""The studio: a page to walk in a generated world. walk.py owns the world, page.py and its panels show it, gate.py lets in."""
