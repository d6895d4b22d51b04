"""The past of sessions and users that go on in later increments, and the event ids that have been seen."""
