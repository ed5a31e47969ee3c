"""What can be asked for, one plain function each."""
