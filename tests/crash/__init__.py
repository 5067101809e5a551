"""The whole walk of an update, killed at every durable step, and what must hold afterwards.

points.py       where a crash can be, found by watching the disk and the database, not listed in the code
disk.py         what a power cut does to what was not synced
here.py         a coordinator in this process, and how workers call it without a socket
short.py        a worker's life without the training
federations.py  what a run's federation is like            orders.py    the commands that are given
machines.py     who runs, dies, hangs and is replaced      aims.py      what goes wrong next
oracle.py       what must hold at the end                  expected.py  what should have become of the journal
contents.py     what every version must hold               formulas.py  the papers' formulas, by hand
runs.py         one seeded run
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # parts.py, also when no test runs
