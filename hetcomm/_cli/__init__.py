"""What the commands of `hetcomm.cli` do; each file is one command's part."""
