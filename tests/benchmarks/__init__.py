"""
How fast udstream is, next to what one would use instead: ``python -m tests.benchmarks``.

``measure`` compares two contenders, ``processes`` runs those that need other processes, ``report`` writes
down what came out. Every other module is a family of rows, each with both contenders' loops side by side,
written as a user would write them.
"""
