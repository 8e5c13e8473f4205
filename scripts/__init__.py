"""What a user starts: demo.py and test.py, and the modules they are made of."""
