"""What a method is, and what a mesh must know of it."""
