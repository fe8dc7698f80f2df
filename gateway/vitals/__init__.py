"""The vitals of workspaces that somebody watches: figures each second, and alerts, from one node of the fleet.

`turns` contests the elections; `desk` is the edge of one workspace that is led; `meter`, `figures` and `alerts` decide.
"""

from .turns import Vitals

__all__ = ["Vitals"]
