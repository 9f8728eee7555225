"""What notebooks/assignments stand on: a room to work in, a leaderboard, and the release."""
