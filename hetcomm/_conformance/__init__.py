"""What the conformance suites and the tests are made of; `hetcomm.testing` is the public face."""
