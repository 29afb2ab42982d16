"""The promises, measured from outside."""

import os

# As `voiced.__main__` does before it loads numpy; `sabotage.py` loads numpy before the daemon.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
