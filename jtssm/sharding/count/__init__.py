"""Bytes counted: in a traced step and in a compiled program."""
