"""Making the nano base: the corpus it reads, its pre-training, and the report of what it can do.

``build(out)`` trains a base into a new folder, measures it and compares it with the shipped one. The criteria that the shipped
base had to meet are in ``replication.nano.base_report``.
"""

from replication.nano.pretrain import build

__all__ = ["build"]
