"""What lies where: the machine's rates, what parts cost, the solver and the planner."""
