"""What serving loads: a manifest over parts of a commit, published by moving one pointer."""
