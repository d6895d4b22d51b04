"""What people see of a run: rows on the terminal, and a report that is a pure function of the commits."""
