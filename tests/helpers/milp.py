"""Placement as a mixed-integer program, a binary for each option, which SciPy's HiGHS solves: the check."""

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from hotset.placing.costs import DEVICE, HOST
from hotset.placing.planner import Plan, Planner
from hotset.placing.solve import Choice, Problem, Solution, lower_bound, tabulated


def checked(planner: Planner, plan: Plan, seconds: float = 5.0) -> Plan | None:
    """What HiGHS plans for the same budget in so many seconds, if it finds anything; with its bound."""
    room, problem = max(0, plan.budget - planner.working_bytes), planner.problem
    found = by_milp(problem, room, tabulated(problem, room), seconds)
    return planner.described(found, plan.budget) if found else None


def by_milp(problem: Problem, budget: int, known: Solution, seconds: float) -> Solution | None:
    """The fastest choice within the budget that HiGHS finds in so many seconds, if any; with its own bound.

    Options that cannot be part of anything faster than `known` are left out: with each goes a lower bound on
    the choices that have it.
    """
    count = len(problem.items)
    owner, home, index = [], [], []
    for i in range(count):
        for side in (HOST, DEVICE):
            width = len(problem.bytes[i][side])
            owner.append(np.full(width, i))
            home.append(np.full(width, side))
            index.append(np.arange(width))
    owners, homes, indices = (np.concatenate(parts) for parts in (owner, home, index))
    nbytes = np.concatenate([part for pair in problem.bytes for part in pair]).astype(np.float64)
    ms = np.concatenate([part for pair in problem.ms for part in pair])
    fits = nbytes <= budget
    _, cheap, dear = lower_bound(problem, budget)
    fits &= problem.least_within(budget, cheap, dear)[owners, homes, indices] <= known.ms * (1 + 1e-9)
    owners, homes, indices, nbytes, ms = (part[fits] for part in (owners, homes, indices, nbytes, ms))
    n = len(owners)
    # Variables: one for each option, then for each item whether the hidden vector moves to reach it.
    scale = max(budget, 1)
    columns = np.arange(n)
    one_each = coo_array((np.ones(n), (owners, columns)), shape=(count, n + count))
    within = coo_array((nbytes / scale, (np.zeros(n, int), columns)), shape=(1, n + count))
    on_device = columns[homes == DEVICE]
    here, after = owners[on_device], owners[on_device] + 1
    has_next = after < count
    sign = np.concatenate([np.ones(len(here)), -np.ones(int(has_next.sum()))])
    moves = coo_array(
        (sign, (np.concatenate([here, after[has_next]]), np.concatenate([on_device, on_device[has_next]]))),
        shape=(count, n + count),
    )
    moved = coo_array((np.ones(count), (np.arange(count), n + np.arange(count))), shape=(count, n + count))
    found = milp(
        np.concatenate([ms, np.full(count, problem.switch_ms)]),
        integrality=np.concatenate([np.ones(n), np.zeros(count)]),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(within, 0, budget / scale),
            LinearConstraint(moved - moves, 0, np.inf),
            LinearConstraint(moved + moves, 0, np.inf),
        ],
        options={"mip_rel_gap": 0.0, "time_limit": seconds},
    )
    if found.x is None:
        return None
    taken = np.flatnonzero(found.x[:n] > 0.5)
    choice = Choice(problem, homes[taken].tolist(), indices[taken].tolist())
    return choice.solution(found.mip_dual_bound)
