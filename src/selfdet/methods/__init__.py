"""What is learned: losses and the modules that compute them."""
