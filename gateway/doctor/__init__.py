"""`ortserve doctor`: what this machine and this installation can do, and what is wrong with them. Knows no server."""

from ortserve.gateway.doctor.cli import configure, run

__all__ = ["configure", "run"]
