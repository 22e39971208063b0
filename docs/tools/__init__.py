"""What the documentation needs that is made from the code when it is built."""
