"""Leave-one-out predictions without refits: what a fit would say of each of its rows had it not seen that row."""

from bll_pyro.inference.leave_one_out.leave_out import LeaveOneOutResult, leave_one_out
from bll_pyro.inference.leave_one_out.outputs import LeftOut, outputs_left_out

__all__ = ["LeaveOneOutResult", "LeftOut", "leave_one_out", "outputs_left_out"]
