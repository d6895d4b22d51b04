"""How the past is kept. A method says what it wants; the loop fetches, sums, steps and logs."""
