"""What is measured: copies, replication, alignment, fidelity, and the intervals around them."""
