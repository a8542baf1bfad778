"""The load generator: a Locust user on a reader of its own.

It runs as a process of its own and imports nothing of the rest but the metrics and
profiles of ``measure`` and what those stand on.
"""
