"""What is trained: layers, networks, cuts."""
