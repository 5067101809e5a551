"""The code, broken on purpose in one place at a time: each break must make the tests fail that are named for it.

python -m tests.mutations [--only NAME] [--json]
"""
