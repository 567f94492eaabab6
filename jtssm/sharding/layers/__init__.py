"""A layer's forms on pr x pc, and what each of them moves."""
