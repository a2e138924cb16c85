"""How the shipped model is trained: data, three small networks, one loop."""
