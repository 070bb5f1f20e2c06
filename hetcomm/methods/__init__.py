"""What `hetcomm.Communicator` can do, a file for each kind of call; the class itself is in `hetcomm.communicator`."""
