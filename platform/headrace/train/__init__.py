"""The loop: an increment's eight steps without Ray, Ray's shell around it, and the driver that keeps it going."""
