"""Doors through which frameworks reach the op, one package each."""
