"""Samplers: noise schedules, the solvers that walk down them, guidance, and the names by which they are asked for.

`names` (no torch) checks what a user typed; `samplers.make_sampler` turns it and a checkpoint's scheduler_config.json
into a `Sampler`. Nothing here sees a network: a solver asks for x0 at a noise level, and whoever runs it answers.
"""
