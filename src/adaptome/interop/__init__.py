"""Adapters in other libraries' formats."""
