"""Collectives over arrays of any vendor's device, in jobs that span hardware of several vendors."""
