"""Which items exist: raw id <-> number <-> row of the item table, and which of them may be answered."""
