"""The atomic record of an increment, and the chain that these records form."""
