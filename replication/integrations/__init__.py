"""The methods inside other people's trainers.

Each module needs its own extra, so import it by its name:

``from replication.integrations.trl import TokenCreditTrainer`` needs the extra ``trl``.
"""
