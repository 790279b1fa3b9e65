"""One video on its way: the session, the schedule, propagation, fusion and decoding."""
