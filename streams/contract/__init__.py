"""What travels on the topics: all that gateway and worker know of each other."""
