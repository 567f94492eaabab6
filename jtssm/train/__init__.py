"""fit: the loop, what feeds it, what it keeps."""
