"""What the benches against others' learners are made of: textbook learners, and drivers of other libraries."""
