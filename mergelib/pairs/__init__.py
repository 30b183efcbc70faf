"""Tables of pairs of tasks, and the statistics that respect the tasks they share."""
